"""Built-in news-topic rows: hand-written headlines and leads in the manner of wire agencies, widened by combination.

The cores stand in ``ag_news_cores.txt`` under ``[label]`` headings, what fills their slots in ``ag_news_slots.txt``.
Cores are split first and varied afterwards, so no core is in both splits. Datelines, agencies and layouts are drawn
alike for all labels and so do not give the topic away.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from types import MappingProxyType

from builtin_data._cores import normalise
from builtin_data._sections import read_sections, split_sections

LABELS = ("World", "Sports", "Business", "Sci-Tech")
SEED = 20240612
ROWS: Mapping[str, int] = MappingProxyType({"train": 1200, "validation": 200})
VALIDATION_EVERY = 7

_NUMBERS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"n": (4, 9), "low": (1, 3), "nn": (12, 78), "nn2": (11, 19), "hundreds": (110, 980), "pct": (6, 58)}
)
"""The ranges of the slots that hold a whole number."""


def cores(split: str) -> dict[str, list[str]]:
    """Return the cores of one split by label: headline, lead and at times a further sentence, parted by ``|``.

    Raises:
        ValueError: if ``split`` is neither ``train`` nor ``validation``.
    """
    return split_sections("ag_news_cores.txt", split, SEED, every=VALIDATION_EVERY)


class _Row:
    """Lays out one core; a slot has the same value wherever it stands in the row."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.slots = read_sections("ag_news_slots.txt")
        self._drawn: dict[str, str] = {}

    def draw(self, slot: str) -> str:
        """Return the value of a slot, never that of its twin (``city`` and ``city2``)."""
        if slot not in self._drawn:
            if slot == "bil":
                value = f"{self.rng.uniform(1.1, 24):.1f}"
            elif slot in _NUMBERS:
                value = str(self.rng.randint(*_NUMBERS[slot]))
            else:
                taken = set(self._drawn.values())
                value = self.rng.choice([word for word in self.slots[slot.rstrip("2")] if word not in taken])
            self._drawn[slot] = value
        return self._drawn[slot]

    def fill(self, text: str) -> str:
        """Fill all slots of a text."""
        return re.sub(r"\{(\w+)\}", lambda match: self.draw(match[1]), text)

    def agency(self) -> str:
        """Return the name of the row's agency."""
        return self.draw("agency")

    def dateline(self) -> str:
        """Return the opening of a lead; none in half the rows, and drawn without regard to the label."""
        place = self.rng.choice(self.slots["capital"] + self.slots["city"]).upper()
        agency, day = self.agency(), f"{self.rng.choice(self.slots['month'])} {self.rng.randint(1, 28)}"
        styles = (f"{place} ({agency}) - ", f"{agency} - ", f"{place} - ", f"{place}, {day} ({agency}) -- ")
        return self.rng.choice(("",) * len(styles) + styles)

    def broken_off(self, text: str) -> str:
        """Break a text off in its last third, as the summaries of feeds do."""
        words = text.split()
        return " ".join(words[: self.rng.randint(2 * len(words) // 3, len(words) - 1)]).rstrip(",.;") + " ..."

    def text(self, core: str) -> str:
        """Return the core with or without headline, source, dateline, further sentence and ending."""
        headline, *body = (self.fill(part) for part in core.split(" | "))
        if len(body) > 1 and self.rng.random() < 0.4:
            body.pop()
        if self.rng.random() < 0.15:
            headline = " ".join(word[:1].upper() + word[1:] for word in headline.split())
        if self.rng.random() < 0.2:
            headline = f"{headline} ({self.agency()})"
        lead = self.dateline() + " ".join(body)
        if self.rng.random() < 0.2:
            lead = self.broken_off(lead)
        return lead if self.rng.random() < 0.1 else f"{headline} {lead}"


def rows(split: str) -> list[dict[str, object]]:
    """Return the rows of a split in the native columns ``text`` and ``label``, shuffled, all labels alike often.

    Args:
        split: ``train`` or ``validation``.

    Raises:
        ValueError: if the split is unknown.
    """
    kept = cores(split)
    rng = random.Random(f"{SEED}/{split}")
    found: list[dict[str, object]] = []
    seen: set[str] = set()
    for number, label in enumerate(LABELS, start=1):
        turn = 0
        while len(found) < number * (ROWS[split] // len(LABELS)):
            text = _Row(rng).text(kept[label][turn % len(kept[label])])
            turn += 1
            if normalise(text) not in seen:
                seen.add(normalise(text))
                found.append({"text": text, "label": label})
    rng.shuffle(found)
    return found
