"""Built-in sentiment rows: hand-written review cores, widened by combination.

The cores stand in ``sst2_cores.txt`` under ``[label kind]`` headings. They are split first and combined afterwards, so no core is
in both splits. In a sentence with a concession the label is that of the main clause.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

LABELS = ("negative", "positive")
SEED = 20240611
ROWS: Mapping[str, int] = MappingProxyType({"train": 1400, "validation": 220})
VALIDATION_SHARE = 7
"""One core in this many belongs to validation."""

_STANDALONE = ("clause", "phrase", "sentence")
_CONCEDED = {"positive": "fault", "negative": "merit"}
_NAMES = (
    "Abbott Aldous Barlow Bellini Castellan Corrigan Dunmore Eklund Farrow Fontaine Grigson Halloran Imamura Jessup Kowal Lindqvist "
    "Marchetti Mbeki Navarro Oduya Pell Quintero Rasmussen Sayeed Takeda Thorne Ullman Varga Westlake Yoon Zeller"
).split()
_SLOTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "it": ("it", "it", "it", "the film", "this film", "the movie", "this movie", "the picture", "{name}'s film", "this {genre}"),
        "film": ("film", "movie", "picture", "drama", "comedy", "thriller", "documentary"),
        "genre": (
            "comedy", "thriller", "drama", "romance", "western", "horror movie", "musical", "documentary", "sequel", "caper",
            "crime story", "war film", "family film", "ghost story", "coming-of-age tale", "biography", "fantasy", "cartoon",
        ),
        "scene": (
            "opening scene", "chase", "wedding scene", "kitchen scene", "final duel", "train sequence", "dance number",
            "interrogation", "last ten minutes", "dinner scene", "rooftop scene", "music",
        ),
        "very": ("very", "quite", "thoroughly", "utterly", "often", "surprisingly", "consistently", "undeniably", "truly"),
        "name": tuple(_NAMES),
        "name2": tuple(_NAMES),
    }
)  # fmt: skip

Cores = dict[tuple[str, str], list[str]]


@cache
def _cores() -> dict[tuple[str, str], tuple[str, ...]]:
    """Return the cores by (label, kind), in the order of the file; ``merit`` and ``fault`` carry no label."""
    found: dict[tuple[str, str], list[str]] = {}
    key = ("", "")
    for line in files(__package__).joinpath("sst2_cores.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            label, _, kind = line.strip("[]").rpartition(" ")
            key = (label, kind)
        elif line and not line.startswith("#"):
            found.setdefault(key, []).append(line)
    return {name: tuple(lines) for name, lines in found.items()}


def split_cores(split: str) -> Cores:
    """Return the cores of one split by (label, kind).

    Raises:
        ValueError: if ``split`` is neither ``train`` nor ``validation``.
    """
    if split not in ROWS:
        raise ValueError(f"built-in task 'sst2' has no split {split!r}; allowed: {', '.join(ROWS)}; ask for one of them")
    kept: Cores = {}
    for key, lines in _cores().items():
        order = list(lines)
        random.Random(f"{SEED}/{key}").shuffle(order)
        cut = max(1, len(order) // VALIDATION_SHARE)
        kept[key] = order[:cut] if split == "validation" else order[cut:]
    return kept


class _Writer:
    """Draws cores evenly, fills their slots and joins them."""

    def __init__(self, cores: Cores, rng: random.Random) -> None:
        self.cores = cores
        self.rng = rng
        self._queues: Cores = {}

    def take(self, label: str, kind: str) -> str:
        """Return the next core of a kind, slots filled; every core is used once before any is used again."""
        queue = self._queues.setdefault((label, kind), [])
        if not queue:
            queue.extend(self.cores[label, kind])
            self.rng.shuffle(queue)
        return self.fill(queue.pop())

    def fill(self, text: str) -> str:
        """Fill all slots of ``text``; one name per slot and sentence."""
        while "{" in text:
            text = re.sub(r"\{(\w+)\}", lambda match: self.rng.choice(_SLOTS[match[1]]), text)
        return text

    def one(self, *options: str) -> str:
        """Return one of the options, slots filled."""
        return self.fill(self.rng.choice(options))


def _other(label: str) -> str:
    return LABELS[1 - LABELS.index(label)]


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _frame(w: _Writer, frames: tuple[str, ...], first: str, second: str = "") -> str:
    """Put one or two finished pieces into one of the frames."""
    return w.one(*frames).replace("<a>", first).replace("<b>", second)


def _alone(w: _Writer, label: str) -> str:
    return w.take(label, w.rng.choice(_STANDALONE))


def _joined(w: _Writer, label: str) -> str:
    frames = ("<a>, and <b>", "<a> -- <b>", "<a>; <b>", "<a>. <b>", "<a>, <b>, and that is about the size of it")
    return _frame(w, frames[: 4 + (w.rng.random() < 0.1)], w.take(label, "clause"), w.take(label, "clause"))


def _turned(w: _Writer, label: str) -> str:
    frames = ("<a>, but <b>", "although <a>, <b>", "<b>, even if <a>", "<a>, and yet <b>", "while <a>, <b>", "<b>, though <a>")
    return _frame(w, frames, w.take(_other(label), "clause"), w.take(label, "clause"))


def _conceded(w: _Writer, label: str) -> str:
    frames = ("for all <a>, <b>", "despite <a>, <b>", "<b>, in spite of <a>", "<b>, <a> notwithstanding", "even with <a>, <b>")
    return _frame(w, frames, w.take("", _CONCEDED[label]), w.take(label, "clause"))


def _opened(w: _Writer, label: str) -> str:
    frames = (
        "in the end, <a>", "as a {genre}, <a>", "the truth is that <a>", "and through it all, <a>", "say what you like, <a>",
        "from its first frame to its last, <a>", "most of the time, <a>", "<a>, as far as i'm concerned", "the result is that <a>",
        "i'm here to tell you that <a>", "<a> -- and i've seen it twice", "by any measure, <a>", "here, at last, <a>",
    )  # fmt: skip
    return _frame(w, frames, w.take(label, "clause"))


def _phrased(w: _Writer, label: str) -> str:
    frames = (
        "<a>; <b>", "<a>. <b>", "<a>, because <b>", "<b>: <a>", "<b>. <a>", "{name} has given us <a>, and <b>",
        "what we have here is <a>", "{name} and company have come up with <a>", "call it <a>", "<a>, in which <b>",
        "it's <a>, and <b>", "{name}'s latest is <a>",
    )  # fmt: skip
    phrase = w.take(label, "phrase")
    nominal = re.match(r"(an?|one|pure|nothing|more|good|mean) ", phrase)
    return _frame(w, frames if nominal else frames[:5], phrase, w.take(label, "clause"))


def _described(w: _Writer, label: str) -> str:
    """Write a short verdict out of adjectives and nouns of judgement."""
    first, second, third = (w.take(label, "adjective") for _ in range(3))
    noun, other_noun = w.take(label, "noun"), w.take(_other(label), "noun")
    other = w.take(_other(label), "adjective")
    frames = [
        "<a> and <b>", "<a>, <b> and {third}", f"{_article(first)} and <b> {{film}}", f"{_article(first)}, <b> {{genre}}",
        "by turns <a>, <b> and {third}", "as <a> as it is <b>", "{name} is <a> as the {role}", f"{_article(first)} script and <b> acting",
        "the {role} is <a> and the rest of it <b>", "<a> from start to finish", "full of {noun}", "<a> stuff", "a {film} of {noun} and <b> comedy",
        f"{_article(first)} story, told in {_article(second)} manner", "the direction is <a>, the dialogue <b>", "there's {noun} here, and plenty of it",
        "more <a> than {other}", "{other} at first, <a> in the end", "not {other} at all, but <a>", "{noun} where you expect {other_noun}",
        "it's anything but {other}", "it could have been {other}, and instead it is <a>", "the {film} is never {other}", "no {other_noun}, just {noun}",
    ]  # fmt: skip
    if label == "negative":
        frames += ["too <a> to be {other}", "it lacks {other_noun}", "not nearly as {other} as it wants to be", "without {other_noun} or sense",
                   "far too <a> for its own good", "low on {other_noun}, high on {noun}", "it would like to be {other}"]  # fmt: skip
    else:
        frames += ["too <a> to be {other}", "it has {noun} to spare", "even more <a> than it needs to be", "without {other_noun} or fuss",
                   "<a> enough to win over a skeptic", "low on {other_noun}, high on {noun}", "i found it {very} <a>"]  # fmt: skip
    role = w.one("hero", "mother", "villain", "narrator", "younger brother", "detective", "cast", "director", "teacher", "heroine")
    text = w.rng.choice(frames)
    for slot, words in (("third", third), ("noun", noun), ("other_noun", other_noun), ("other", other), ("role", role)):
        text = text.replace(f"{{{slot}}}", words)
    return _frame(w, (text,), first, second)


_PATTERNS = (
    (_alone, 5), (_joined, 5), (_turned, 4), (_conceded, 2), (_opened, 3), (_phrased, 5), (_described, 8),
)  # fmt: skip


def _prose(text: str) -> str:
    """Set a review as ordinary prose: capitals at the starts of sentences and a final full stop."""
    text = re.sub(r"\bi(?=\b(?!-))", "I", text.replace(" -- ", " - "))
    text = re.sub(r"(^|[.?!] )([a-z])", lambda match: match[1] + match[2].upper(), text)
    return text if text[-1] in ".?!" else f"{text}."


def _tokenised(text: str, rng: random.Random) -> str:
    """Set a review as lower-case tokens separated by single spaces, most often with a final full stop."""
    text = re.sub(r"n't\b", " n't", text.lower())
    text = re.sub(r"('(?:s|re|ve|ll|d|m))\b", r" \1", text)
    text = re.sub(r"\s*([,;:.?!])(?=\s|$)", r" \1", text)
    return text if text[-1] in ".?!" or rng.random() < 0.3 else f"{text} ."


def _normalised(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", text.lower())


def _drafts(w: _Writer, label: str, count: int) -> list[str]:
    """Write ``count`` different texts of one label: first every core that can stand alone, then combinations."""
    drafts = [w.fill(core) for kind in _STANDALONE for core in w.cores[label, kind]][:count]
    seen = {_normalised(draft) for draft in drafts}
    makers, weights = zip(*_PATTERNS, strict=True)
    while len(drafts) < count:
        draft = w.rng.choices(makers, weights)[0](w, label)
        if _normalised(draft) not in seen:
            seen.add(_normalised(draft))
            drafts.append(draft)
    return drafts


def rows(split: str) -> list[dict[str, object]]:
    """Return the rows of a split in the native columns ``text`` and ``label``, shuffled and with equal counts of both labels.

    Args:
        split: ``train`` or ``validation``.

    Raises:
        ValueError: if the split is unknown.
    """
    cores = split_cores(split)
    rng = random.Random(f"{SEED}/{split}")
    writer = _Writer(cores, rng)
    found: list[dict[str, object]] = []
    for label in LABELS:
        for draft in _drafts(writer, label, ROWS[split] // len(LABELS)):
            text = _prose(draft) if rng.random() < 0.3 else _tokenised(draft, rng)
            found.append({"text": text, "label": label})
    rng.shuffle(found)
    return found
