"""Built-in rows of the entity task: newswire sentences tagged in BIO with PER, ORG, LOC and MISC.

Hand-written sentence frames are filled from hand-written lists of names. The two splits use different frames, so that
no sentence of the validation split has a sibling in the train split.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

LABELS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
"""The tags, in the order of the label ids."""

SEED = 20260
SIZES = {"train": 1300, "validation": 200}
HELD_OUT = 7
"""Every so-many-th frame of a section, on average, belongs to the validation split."""

NATION_KINDS = {"country": "LOC", "city": "LOC", "capital": "LOC", "adj": "MISC", "per": "PER", "sur": "PER",
                "given": "PER", "ini": "PER", "club": "ORG"}  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December", "Aug", "Sept", "Oct")  # fmt: skip
SETS = ("6-4", "6-2", "7-5", "3-6", "7-6 ( 7-4 )", "6-1", "4-6", "6-3")
NO_KEY = "#"
"""Opens the private key of a slot that is written without one."""

SLOT = re.compile(r"\{(?P<kind>\w+)(?::(?P<key>[^}]+))?\}")
WORD = re.compile(r"\[(?P<words>[^\]|]+)\|(?P<type>[A-Z]+)\]|(?P<word>(?:\{[^}]+\}|\S)+)")
"""One piece of a frame: a bracketed entity, or what stands between two spaces."""


def _ordinal(number: int) -> str:
    special = number % 10 in {1, 2, 3} and number // 10 != 1
    return f"{number}{('st', 'nd', 'rd')[number % 10 - 1] if special else 'th'}"


NUMBERS: dict[str, Callable[[random.Random], str]] = {
    "g": lambda rng: rng.choice("0112233456789"),
    "rank": lambda rng: str(rng.randint(1, 9)),
    "n": lambda rng: str(rng.randint(2, 98)),
    "ord": lambda rng: _ordinal(rng.randint(2, 89)),
    "n3": lambda rng: str(rng.randint(100, 989)),
    "nk": lambda rng: f"{rng.randint(1, 89)},{rng.randint(0, 999):03d}",
    "dec": lambda rng: f"{rng.randint(0, 99)}.{rng.randint(0, 99)}",
    "score": lambda rng: f"{rng.randint(0, 5)}-{rng.randint(0, 3)}",
    "set": lambda rng: rng.choice(SETS),
    "time": lambda rng: f"{rng.randint(1, 59)}:{rng.randint(10, 59)}.{rng.randint(10, 999)}",
    "date": lambda rng: f"{rng.randint(1994, 1999)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
    "year": lambda rng: str(rng.randint(1890, 1999)),
    "day": lambda rng: rng.choice(DAYS),
    "month": lambda rng: rng.choice(MONTHS),
}
"""Slots that hold no name: numbers, scores, times and dates."""


@dataclass(frozen=True, slots=True)
class Nation:
    """The names that one country lends to a sentence."""

    country: str
    adjective: str
    cities: list[str]
    given: list[str]
    surnames: list[str]
    clubs: list[str]


def _lines(name: str) -> Iterator[str]:
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    return (line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))


def _split(values: str) -> list[str]:
    return [value.strip() for value in values.split(",")]


@cache
def _nations() -> tuple[Nation, ...]:
    nations = []
    for line in _lines("conll2003_nations.txt"):
        country, adjective, *lists = (part.strip() for part in line.split(" | "))
        cities, given, surnames, clubs = (_split(part) for part in lists)
        nations.append(Nation(country, adjective, cities, given, surnames, clubs))
    return tuple(nations)


@cache
def _lists() -> dict[str, tuple[str, list[str]]]:
    """Return list name -> (entity type, values)."""
    found = {}
    for line in _lines("conll2003_lists.txt"):
        head, values = line.split(" : ", 1)
        name, kind = head.split()
        found[name] = (kind, _split(values))
    return found


@cache
def frames(split: str) -> tuple[tuple[str, ...], ...]:
    """Return the sections of sentence frames that belong to ``split``; no frame is in both splits."""
    sections: list[list[str]] = []
    for line in _lines("conll2003_frames.txt"):
        if line.startswith("=="):
            sections.append([])
        elif all(line not in section for section in sections):
            sections[-1].append(line)
    rng = random.Random(SEED)
    kept = []
    for section in sections:
        held = set(rng.sample(range(len(section)), max(1, round(len(section) / HELD_OUT))))
        kept.append(tuple(frame for i, frame in enumerate(section) if (i in held) == (split == "validation")))
    return tuple(kept)


@dataclass(slots=True)
class _Filler:
    """The names and numbers of one sentence; a slot that comes back under the same key gets the same name."""

    rng: random.Random
    nations: dict[str, Nation] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)

    def nation(self, key: str) -> Nation:
        """Return the nation of a key: the one it names in full, else the one drawn for its letter."""
        for nation in _nations():
            if nation.country == key:
                return nation
        letter = key if key.startswith(NO_KEY) else key[0]
        if letter not in self.nations:
            free = [nation for nation in _nations() if nation not in self.nations.values()]
            self.nations[letter] = self.rng.choice(free)
        return self.nations[letter]

    def _fresh(self, values: list[str], kind: str) -> str:
        used = {text for name, text in self.chosen.items() if name.startswith(kind)}
        return self.rng.choice([value for value in values if value not in used] or values)

    def name(self, kind: str, key: str) -> str:
        """Return the text of one name slot, words separated by spaces."""
        key = key or f"{NO_KEY}{len(self.chosen)}"
        memory = f"{kind}:{key}"
        if memory not in self.chosen:
            self.chosen[memory] = self._draw(kind, key)
        return self.chosen[memory]

    def _draw(self, kind: str, key: str) -> str:
        if kind not in NATION_KINDS:
            return self._fresh(_lists()[kind][1], kind)
        if kind == "country" and key.startswith(NO_KEY) and self.rng.random() < 0.5:
            return self._fresh(_lists()["country"][1], kind)
        nation = self.nation(key)
        if kind == "per":
            return f"{self.rng.choice(nation.given)} {self.name('sur', key)}"
        if kind == "ini":
            return f"{self.rng.choice('ABCDGHJKMNPRSTW')}. {self.name('sur', key)}"
        if kind == "capital":
            return nation.cities[0]
        values = {"country": [nation.country], "adj": [nation.adjective], "city": nation.cities,
                  "sur": nation.surnames, "given": nation.given, "club": nation.clubs}  # fmt: skip
        return self._fresh(values[kind], kind)

    def text(self, slot: re.Match[str]) -> str:
        """Return what a slot stands for: a number, or a name in which words are separated by spaces."""
        kind, key = slot["kind"], slot["key"] or ""
        return NUMBERS[kind](self.rng) if kind in NUMBERS else self.name(kind.lower(), key)


def _type_of(word: str) -> str:
    """Return the entity type of a word that is nothing but one name slot, else "O"."""
    slot = SLOT.fullmatch(word)
    if slot is None or slot["kind"] in NUMBERS:
        return "O"
    return NATION_KINDS[slot["kind"]] if slot["kind"] in NATION_KINDS else _lists()[slot["kind"]][0]


def _fill(frame: str, rng: random.Random) -> tuple[list[str], list[str]]:
    """Return the tokens and the BIO tags of one filled frame."""
    filler = _Filler(rng)
    tokens: list[str] = []
    tags: list[str] = []
    for piece in WORD.finditer(frame.removeprefix("^")):
        text, kind = (piece["words"], piece["type"]) if piece["type"] else (piece["word"], _type_of(piece["word"]))
        filled = SLOT.sub(filler.text, text)
        words = re.sub(r"(\w)('s?)(?= |$)", r"\1 \2", filled).split()
        tokens.extend(words)
        tags.extend("O" if kind == "O" else ("I-" if i else "B-") + kind for i in range(len(words)))
    return [token.upper() for token in tokens] if frame.startswith("^") else _polish(tokens), tags


def _polish(tokens: list[str]) -> list[str]:
    """Return the tokens with a capital at the start and with "an" before a vowel."""
    polished = list(tokens)
    for i, after in enumerate(tokens[1:]):
        if tokens[i] in {"A", "a"} and after[0] in "AEIOUaeio":
            polished[i] = f"{tokens[i]}n"
    polished[0] = polished[0][0].upper() + polished[0][1:]
    return polished


def rows(split: str) -> list[dict[str, object]]:
    """Return the rows of ``split`` ("train" or "validation"): ``tokens`` and ``tags``, one tag per token.

    Raises:
        ValueError: when ``split`` is neither.
    """
    if split not in SIZES:
        raise ValueError(f"the built-in data has no split {split!r}; allowed: {sorted(SIZES)}")
    rng = random.Random(f"{SEED}-{split}")
    pool = [frame for section in frames(split) for frame in section]
    seen: set[str] = set()
    found: list[dict[str, object]] = []
    turn = 0
    while len(found) < SIZES[split]:
        if turn % len(pool) == 0:
            rng.shuffle(pool)
        tokens, tags = _fill(pool[turn % len(pool)], rng)
        turn += 1
        text = " ".join(tokens).lower()
        if text not in seen:
            seen.add(text)
            found.append({"tokens": tokens, "tags": tags})
    rng.shuffle(found)
    return found
