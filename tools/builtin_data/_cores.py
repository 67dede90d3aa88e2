"""Reading of the hand-written cores of the built-in pair tasks, and their split.

A core is a block of lines with one mark each; blank lines part the cores and ``#`` opens a comment. A line with the
mark ``~`` (``a => b; c => d``) widens the core by a second one in which every ``a`` reads ``b``; both stay in one
split.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

from dynamorouter.data.builtin import SPLITS

Line = tuple[str, str]
"""The mark of a line and its text."""
Core = list[list[Line]]
"""The variants of one core: the one written by hand, and the widened ones after it."""


def normalise(text: str) -> str:
    """Return the text in lower case with words and numbers alone, for telling duplicates."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def check_split(split: str) -> None:
    """Refuse a split that the built-in data does not have.

    Raises:
        ValueError: if ``split`` is neither ``train`` nor ``validation``.
    """
    if split not in SPLITS:
        raise ValueError(
            f"built-in data has no split {split!r}; allowed are {' and '.join(SPLITS)}, choose one of them"
        )


def read_cores(path: Path) -> list[Core]:
    """Read all cores of a file, in the order of the file."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    blocks = re.split(r"\n\s*\n", "\n".join(lines).strip())
    return [_widen([_parse(line) for line in block.splitlines()]) for block in blocks]


def split_cores(cores: list[Core], split: str, seed: int, *, every: int) -> list[Core]:
    """Return the cores of one split: of the shuffled cores each ``every``-th is for validation."""
    check_split(split)
    order = list(range(len(cores)))
    random.Random(seed).shuffle(order)
    return [cores[index] for rank, index in enumerate(order) if (rank % every == 0) == (split == "validation")]


def _parse(line: str) -> Line:
    mark, text = line.split(" ", 1)
    return mark, text.strip()


def _widen(lines: list[Line]) -> Core:
    written = [(mark, text) for mark, text in lines if mark != "~"]
    core = [written]
    for mark, text in lines:
        if mark == "~":
            swaps = dict(swap.strip().split(" => ") for swap in text.split(";"))
            core.append([(kind, _swap(sentence, swaps)) for kind, sentence in written])
    return core


def _swap(text: str, swaps: dict[str, str]) -> str:
    # One pass with the longest first: what was put in is not swapped again.
    longest = sorted(swaps, key=len, reverse=True)
    pattern = "|".join(rf"(?<![A-Za-z0-9]){re.escape(old)}(?![A-Za-z0-9])" for old in longest)
    return re.sub(pattern, lambda match: swaps[match.group(0)], text)
