"""Reading of hand-written lines under ``[headings]``, their split, and the even drawing from them."""

from __future__ import annotations

import random
from functools import cache
from importlib.resources import files

from builtin_data._cores import check_split


@cache
def read_sections(name: str) -> dict[str, tuple[str, ...]]:
    """Return the lines of a text file of this package by heading; ``#`` opens a comment, blank lines do not count."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in files(__package__).joinpath(name).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            heading = line.strip("[]")
        elif line and not line.startswith("#"):
            found.setdefault(heading, []).append(line)
    return {key: tuple(lines) for key, lines in found.items()}


def split_sections(name: str, split: str, seed: int, *, every: int) -> dict[str, list[str]]:
    """Return the lines of one split by heading: of each heading's shuffled lines one in ``every`` is for validation.

    Raises:
        ValueError: if ``split`` is neither ``train`` nor ``validation``.
    """
    check_split(split)
    kept: dict[str, list[str]] = {}
    for heading, lines in read_sections(name).items():
        order = list(lines)
        random.Random(f"{seed}/{heading}").shuffle(order)
        cut = max(1, len(order) // every)
        kept[heading] = order[:cut] if split == "validation" else order[cut:]
    return kept
