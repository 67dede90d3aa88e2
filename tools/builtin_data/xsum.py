"""Built-in news summaries: invented short reports, each with the one sentence that says what happened.

The stories stand in ``xsum_stories.txt``. They are split first and filled with names, places and numbers afterwards, so
no story is in both splits.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType

from builtin_data._cores import check_split, normalise

SEED = 20261122
ROWS: Mapping[str, int] = MappingProxyType({"train": 540, "validation": 120})
VALIDATION_EVERY = 6
LEFT_OUT = 0.4
"""Chance that a sentence which may be left out is."""

_WOMEN = ("Anna", "Beth", "Clare", "Diane", "Edith", "Grace", "Helen", "Joan", "Laura", "Mary", "Pauline", "Ruth",
          "Susan", "Wendy")  # fmt: skip
_MEN = ("Alan", "Brian", "David", "Frank", "Harry", "Ian", "Keith", "Martin", "Neil", "Robert", "Simon", "Tom")
_LAST = ("Aldous", "Barrow", "Birtles", "Cobham", "Dunning", "Easter", "Fenwick", "Garrod", "Hallam", "Ibbotson",
         "Jessop", "Kettle", "Lorimer", "Mundy", "Nesbit", "Orchard", "Pagett", "Quill", "Rudge", "Sillence",
         "Tranter", "Usher", "Vickery", "Wragg", "Yardley")  # fmt: skip
_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "town": ("Ashcombe", "Brackwell", "Carnforth Bay", "Dunhaven", "Eastmere", "Fallowby", "Glenmoor", "Harrowgate",
                 "Inverlane", "Kelsworth", "Langstead", "Marlbury", "Netherby", "Oakhampton", "Penmarsh", "Redcliffe",
                 "Stanwick", "Thornbury Vale", "Upper Wexley", "Whitford"),
        "county": ("Aldershire", "Brentland", "Cleveshire", "Dornshire", "Eskdale", "Fairshire", "Haleshire",
                   "Morland", "Pendleshire", "Wolverland"),
        "river": ("Arle", "Brock", "Culver", "Dene", "Ister", "Lark", "Marl", "Ockle", "Rill", "Tarn"),
        "street": ("Abbey Lane", "Bridge Street", "Castle Road", "Dock Street", "Elm Avenue", "Foundry Lane",
                   "High Street", "Mill Road", "Station Road", "Victoria Street"),
        "school": ("Birch Hill School", "Queen's Park Academy", "St Hilda's School", "Westfield School",
                   "Meadow Lane School", "Castle View Academy"),
        "firm": ("Ardent", "Brightwell", "Cooper and Lane", "Dalton's", "Everley", "Hartwood", "Linden", "Nordale"),
        "team": ("Ashcombe Town", "Brackwell Rovers", "Dunhaven United", "Eastmere Athletic", "Glenmoor City",
                 "Kelsworth Wanderers", "Penmarsh Albion", "Stanwick Rangers"),
        "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
        "month": ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
                  "November", "December"),
        "child": ("five", "six", "seven", "eight", "nine"),
        "few": ("three", "four", "five", "six", "seven", "eight", "nine"),
    }
)  # fmt: skip
_NUMBERS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {"tens": (20, 90, 10), "decades": (20, 50, 10), "age": (58, 84, 1), "hundreds": (120, 960, 20),
     "thousands": (2000, 19500, 500), "pct": (8, 64, 1), "low": (2, 9, 1), "young": (19, 38, 1),
     "oldyear": (1862, 1899, 1), "year": (1850, 1965, 1), "midyear": (1938, 1946, 1)}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Story:
    """One story: its summary, and the sentences of its document with whether each may be left out."""

    summary: str
    sentences: tuple[tuple[str, bool], ...]


@cache
def stories(split: str) -> tuple[Story, ...]:
    """Return the stories of one split.

    Raises:
        ValueError: if ``split`` is neither ``train`` nor ``validation``.
    """
    check_split(split)
    text = resources.files(__package__).joinpath("xsum_stories.txt").read_text(encoding="utf-8")
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    found = []
    for block in re.split(r"\n\s*\n", text.strip()):
        summary, *lines = block.splitlines()
        found.append(Story(summary.removeprefix("! "), tuple((line[2:], line[0] == "?") for line in lines)))
    random.Random(SEED).shuffle(found)
    return tuple(s for rank, s in enumerate(found) if (rank % VALIDATION_EVERY == 0) == (split == "validation"))


class _Telling:
    """Fills the slots of one story; a slot has the same value wherever it stands."""

    def __init__(self, story: Story, rng: random.Random) -> None:
        self.story, self.rng = story, rng
        self._drawn: dict[str, str] = {}

    def draw(self, slot: str) -> str:
        """Return the value of a slot, never that of its twin (``town`` and ``town2``)."""
        name, _, part = slot.partition(".")
        if name not in self._drawn:
            self._drawn[name] = self._new(name)
        value = self._drawn[name]
        return value.split(" ", 1)[1] if part == "last" else value

    def _new(self, slot: str) -> str:
        kind = slot.rstrip("2")
        if kind in ("p", "w", "m"):
            return self._person(kind)
        if kind == "million":
            return f"{self.rng.uniform(1.2, 40):.1f}"
        if kind in _NUMBERS:
            low, high, step = _NUMBERS[kind]
            value = self.rng.randrange(low, high + 1, step)
            return f"{value:,}" if kind == "thousands" else str(value)
        taken = set(self._drawn.values())
        return self.rng.choice([word for word in _WORDS[kind] if word not in taken])

    def _person(self, kind: str) -> str:
        """Return the name of anybody, of a woman or of a man, no part of it used already."""
        taken = {part for value in self._drawn.values() for part in value.split()}
        allowed = {"p": _WOMEN + _MEN, "w": _WOMEN, "m": _MEN}[kind]
        first = self.rng.choice([name for name in allowed if name not in taken])
        return f"{first} {self.rng.choice([name for name in _LAST if name not in taken])}"

    def fill(self, text: str) -> str:
        """Fill all slots of a text; a word for a number that opens a sentence is capitalised."""
        filled = re.sub(r"\{([\w.]+)\}", lambda match: self.draw(match[1]), text)
        return filled[0].upper() + filled[1:]

    def row(self) -> dict[str, object]:
        """Return the document, some of its sentences left out, and the summary."""
        kept = [text for text, spare in self.story.sentences if not (spare and self.rng.random() < LEFT_OUT)]
        return {"document": " ".join(map(self.fill, kept)), "summary": self.fill(self.story.summary)}


def rows(split: str) -> list[dict[str, object]]:
    """Return the rows of a split in the native columns ``document`` and ``summary``, shuffled.

    Args:
        split: ``train`` or ``validation``.

    Raises:
        ValueError: if the split is unknown.
    """
    kept = stories(split)
    rng = random.Random(f"{SEED}/{split}")
    found: list[dict[str, object]] = []
    seen: set[str] = set()
    turn = 0
    while len(found) < ROWS[split]:
        row = _Telling(kept[turn % len(kept)], rng).row()
        turn += 1
        if not seen & {normalise(str(row["document"])), normalise(str(row["summary"]))}:
            seen |= {normalise(str(row["document"])), normalise(str(row["summary"]))}
            found.append(row)
    rng.shuffle(found)
    return found
