"""Built-in question pairs, as people type them: real rewordings, and questions that differ in one decisive thing."""

from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path

from builtin_data._cores import Core, normalise, read_cores, split_cores

ROWS = {"train": 1040, "validation": 210}
"""Rows of each split, half of them duplicates."""

_SEED = 2017
_CORES = Path(__file__).with_name("qqp_cores.txt")
_FAR = 0.15
"""Share of the non-duplicates that pair questions of different cores."""
_SWAPPED = 0.2
"""Share of the non-duplicates that ask the same of another place, product, number or person."""

Pair = tuple[str, str]


def rows(split: str) -> list[dict[str, object]]:
    """Return the rows of a split, shuffled, always in the same order and with equally many of each label.

    Args:
        split: ``train`` or ``validation``; no core is in both.

    Returns:
        Rows with ``question1``, ``question2`` and ``label`` (duplicate or not_duplicate).

    Raises:
        ValueError: if the split is unknown.
    """
    cores = split_cores(read_cores(_CORES), split, _SEED, every=6)
    rng = random.Random(f"{_SEED} {split}")
    same, near = _near(cores, rng)
    each = ROWS[split] // 2
    far = round(each * _FAR)
    labelled = [(pair, "duplicate") for pair in rng.sample(same, each)]
    swapped = _once(near + _swapped(cores, rng))[len(near) :]
    swapped = rng.sample(swapped, min(len(swapped), round(each * _SWAPPED)))
    others = swapped + _far(cores, far, rng)
    others += rng.sample(near, each - len(others))
    labelled += [(pair, "not_duplicate") for pair in others]
    rng.shuffle(labelled)
    chosen: list[dict[str, object]] = []
    for pair, label in labelled:
        first, second = rng.sample(pair, 2)
        chosen.append({"question1": first, "question2": second, "label": label})
    return chosen


def _near(cores: list[Core], rng: random.Random) -> tuple[list[Pair], list[Pair]]:
    """Return all duplicates, and of every near question one pair with each variant's wordings."""
    same: list[Pair] = []
    near: list[Pair] = []
    for core in cores:
        for lines in core:
            alike = [text for mark, text in lines if mark == "="]
            same += combinations(alike, 2)
            near += [(rng.choice(alike), text) for mark, text in lines if mark == "!"]
    return _once(same), _once(near)


def _once(pairs: list[Pair]) -> list[Pair]:
    """Return the pairs without those that came before, in either order."""
    kept: dict[frozenset[str], Pair] = {}
    for pair in pairs:
        kept.setdefault(frozenset(map(normalise, pair)), pair)
    return list(kept.values())


def _swapped(cores: list[Core], rng: random.Random) -> list[Pair]:
    """Return for each swapped question its written counterpart, word for word and in another wording."""
    pairs: list[Pair] = []
    for written, *variants in cores:
        for lines in variants:
            both = zip(written, lines, strict=True)
            changed = [(old, new) for (mark, old), (_, new) in both if mark == "=" and old != new]
            wordings = [new for _, new in changed]
            for old, new in changed:
                pairs.append((old, new))
                others = [text for text in wordings if text != new]
                if others:
                    pairs.append((old, rng.choice(others)))
    return pairs


def _far(cores: list[Core], count: int, rng: random.Random) -> list[Pair]:
    """Return pairs of questions of different cores."""
    pairs: list[Pair] = []
    for _ in range(count):
        one, two = rng.sample(cores, 2)
        pairs.append((rng.choice(one[0])[1], rng.choice(two[0])[1]))
    return pairs
