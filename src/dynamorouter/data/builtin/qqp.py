"""Built-in question pairs, as people type them: real rewordings, and questions that differ in one decisive thing."""

from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path

from dynamorouter.data.builtin._cores import Core, normalise, read_cores, split_cores

ROWS = {"train": 1040, "validation": 210}
"""Rows of each split, half of them duplicates."""

_SEED = 2017
_CORES = Path(__file__).with_name("qqp_cores.txt")
_FAR = 0.15
"""Share of the non-duplicates that pair questions of different cores."""

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
    labelled += [(pair, "not_duplicate") for pair in rng.sample(near, each - far) + _far(cores, far, rng)]
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
    seen: set[frozenset[str]] = set()
    for core in cores:
        for lines in core:
            alike = [text for mark, text in lines if mark == "="]
            other = [text for mark, text in lines if mark == "!"]
            for pairs, found in (
                (list(combinations(alike, 2)), same),
                ([(rng.choice(alike), text) for text in other], near),
            ):
                for pair in pairs:
                    key = frozenset(map(normalise, pair))
                    if key not in seen:
                        seen.add(key)
                        found.append(pair)
    return same, near


def _far(cores: list[Core], count: int, rng: random.Random) -> list[Pair]:
    """Return pairs of questions of different cores."""
    pairs: list[Pair] = []
    for _ in range(count):
        one, two = rng.sample(cores, 2)
        pairs.append((rng.choice(one[0])[1], rng.choice(two[0])[1]))
    return pairs
