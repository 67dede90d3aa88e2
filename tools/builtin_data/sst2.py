"""Built-in sentiment rows: hand-written review cores, widened by combination.

The cores stand in ``sst2_cores.txt`` under ``[label kind]`` headings, what fills their slots in ``sst2_slots.txt``.
Cores are split first and combined afterwards, so no core is in both splits. In a sentence with a concession the label
is that of the main clause.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from builtin_data._cores import normalise
from builtin_data._sections import read_sections, split_sections

LABELS = ("negative", "positive")
SEED = 20240611
ROWS: Mapping[str, int] = MappingProxyType({"train": 1800, "validation": 220})
VALIDATION_EVERY = 7

_STANDALONE = ("clause", "phrase", "sentence")
_CONCEDED = {"positive": "fault", "negative": "merit"}
_BUT = (
    "<a>, but <b>", "although <a>, <b>", "<b>, even if <a>", "<a>, and yet <b>", "while <a>, <b>", "<b>, though <a>",
)  # fmt: skip
_DESPITE = (
    "for all <a>, <b>", "despite <a>, <b>", "<b>, in spite of <a>", "<b>, <a> notwithstanding", "even with <a>, <b>",
)  # fmt: skip
_OPENINGS = (
    "in the end, <a>", "as a {genre}, <a>", "the truth is that <a>", "and through it all, <a>", "by any measure, <a>",
    "from its first frame to its last, <a>", "most of the time, <a>", "<a>, as far as i'm concerned",
    "here, at last, <a>", "the result is that <a>", "i'm here to tell you that <a>", "<a> -- and that's that",
    "say what you like, <a>",
)  # fmt: skip
_APPOSED = ("<a>; <b>", "<a>. <b>", "<a>, because <b>", "<b>: <a>", "<b>. <a>")
_NAMED = (
    "{name} has given us <a>, and <b>", "what we have here is <a>", "{name} and company have come up with <a>",
    "call it <a>", "<a>, in which <b>", "it's <a>, and <b>", "{name}'s latest is <a>",
)  # fmt: skip
_NOUN_PHRASE = re.compile(r"(an?|one|pure|nothing|more|good|mean) ")

Cores = dict[str, list[str]]


def cores(split: str) -> Cores:
    """Return the cores of one split by ``label kind``; ``merit`` and ``fault`` have no label.

    Raises:
        ValueError: if ``split`` is neither ``train`` nor ``validation``.
    """
    return split_sections("sst2_cores.txt", split, SEED, every=VALIDATION_EVERY)


class _Writer:
    """Draws cores evenly, fills their slots and joins them."""

    def __init__(self, kept: Cores, rng: random.Random) -> None:
        self.kept = kept
        self.rng = rng
        self.slots = read_sections("sst2_slots.txt")
        self._queues: Cores = {}

    def next(self, kind: str) -> str:
        """Return the next core, slots open; every core is used once before any is used again."""
        queue = self._queues.setdefault(kind, [])
        if not queue:
            queue.extend(self.kept[kind])
            self.rng.shuffle(queue)
        return queue.pop()

    def take(self, kind: str) -> str:
        """Return the next core, slots filled."""
        return self.fill(self.next(kind))

    def fill(self, text: str) -> str:
        """Fill all slots of ``text``; ``{name2}`` is a name like ``{name}``."""
        while "{" in text:
            text = re.sub(r"\{([a-z]+)2?\}", lambda match: self.rng.choice(self.slots[match[1]]), text)
        return text

    def bare(self, core: str) -> str:
        """Fill a clause that stands by itself, at times without its subject (``takes no risks``)."""
        subject, _, rest = core.partition(" ")
        return self.fill(rest if subject == "{it}" and self.rng.random() < 0.35 else core)

    def frame(self, frames: tuple[str, ...], first: str, second: str = "") -> str:
        """Put one or two finished pieces into one of the frames."""
        return self.fill(self.rng.choice(frames)).replace("<a>", first).replace("<b>", second)


def _other(label: str) -> str:
    """Return the opposite label."""
    return LABELS[1 - LABELS.index(label)]


def _article(words: str) -> str:
    return f"an {words}" if words.startswith(("a", "e", "i", "o", "u", "honest")) else f"a {words}"


def _alone(w: _Writer, label: str) -> str:
    kind = w.rng.choice(_STANDALONE)
    return w.bare(w.next(f"{label} {kind}"))


def _joined(w: _Writer, label: str) -> str:
    kind = f"{label} clause"
    return w.frame(("<a>, and <b>", "<a> -- <b>", "<a>; <b>", "<a>. <b>"), w.bare(w.next(kind)), w.take(kind))


def _turned(w: _Writer, label: str) -> str:
    return w.frame(_BUT, w.take(f"{_other(label)} clause"), w.take(f"{label} clause"))


def _conceded(w: _Writer, label: str) -> str:
    return w.frame(_DESPITE, w.take(_CONCEDED[label]), w.take(f"{label} clause"))


def _opened(w: _Writer, label: str) -> str:
    return w.frame(_OPENINGS, w.take(f"{label} clause"))


def _phrased(w: _Writer, label: str) -> str:
    phrase = w.take(f"{label} phrase")
    return w.frame(_APPOSED + _NAMED if _NOUN_PHRASE.match(phrase) else _APPOSED, phrase, w.take(f"{label} clause"))


def _described(w: _Writer, label: str) -> str:
    """Write a verdict out of adjectives, nouns of judgement and the sides of a work that they judge."""
    other = _other(label)
    words = {slot: w.take(f"{label} adjective") for slot in ("adj", "adj2", "adj3")}
    words |= {"other": w.take(f"{other} adjective"), "other_noun": w.take(f"{other} noun")}
    words |= dict(zip(("part", "part2", "part3"), w.rng.sample(w.slots["part"], 3), strict=True))
    words |= {"noun": w.take(f"{label} noun"), "role": w.rng.choice(w.slots["role"])}
    words |= {f"a_{slot}": _article(words[slot]) for slot in ("adj", "adj2", "other")}
    text = w.rng.choice(w.slots["verdict both"] * 2 + w.slots[f"verdict {label}"] * 2)
    return w.fill(re.sub(r"<(\w+)>", lambda match: words[match[1]], text))


_PATTERNS = ((_alone, 3), (_joined, 4), (_turned, 3), (_conceded, 1), (_opened, 2), (_phrased, 4), (_described, 8))
"""How cores are combined, with weights."""


def _prose(text: str) -> str:
    """Set a review as ordinary prose: capitals at the starts of sentences and a final full stop."""
    text = re.sub(r"\bi\b(?!-)", "I", text.replace(" -- ", " - "))
    text = re.sub(r"(^|[.?!] )([a-z])", lambda match: match[1] + match[2].upper(), text)
    return text if text[-1] in ".?!" else f"{text}."


def _tokenised(text: str, rng: random.Random) -> str:
    """Set a review as lower-case tokens parted by single spaces, most often with a final full stop."""
    text = re.sub(r"n't\b", " n't", text.lower())
    text = re.sub(r"('(?:s|re|ve|ll|d|m))\b", r" \1", text)
    text = re.sub(r"\s*([,;:.?!])(?=\s|$)", r" \1", text)
    return text if text[-1] in ".?!" or rng.random() < 0.3 else f"{text} ."


def _drafts(w: _Writer, label: str) -> Iterator[str]:
    """Yield texts of one label without end: first every core that can stand alone, then combinations."""
    for kind in _STANDALONE:
        yield from (w.bare(core) for core in w.kept[f"{label} {kind}"])
    makers, weights = zip(*_PATTERNS, strict=True)
    while True:
        yield w.rng.choices(makers, weights)[0](w, label)


def rows(split: str) -> list[dict[str, object]]:
    """Return the rows of a split in the native columns ``text`` and ``label``, shuffled, both labels alike often.

    Args:
        split: ``train`` or ``validation``.

    Raises:
        ValueError: if the split is unknown.
    """
    kept = cores(split)
    rng = random.Random(f"{SEED}/{split}")
    writer = _Writer(kept, rng)
    found: list[dict[str, object]] = []
    seen: set[str] = set()
    for number, label in enumerate(LABELS, start=1):
        for draft in _drafts(writer, label):
            text = _prose(draft) if rng.random() < 0.3 else _tokenised(draft, rng)
            key = normalise(draft.replace("'", ""))
            if key not in seen:
                seen.add(key)
                found.append({"text": text, "label": label})
            if len(found) == number * (ROWS[split] // len(LABELS)):
                break
    rng.shuffle(found)
    return found
