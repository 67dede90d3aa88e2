"""What training tells of itself: losses, norms and scores by step, and checkpoints, to one object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, final


class TrainingLog(Protocol):
    """Takes note of a training."""

    def part(self, name: str) -> TrainingLog:
        """Return where one part of the work is noted, under a name of its own."""

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """Take losses, norms and scores of a step."""

    def saved(self) -> None:
        """Take note of a checkpoint that has just been written."""


@final
class Unlogged:
    """The log of a training that nobody reads."""

    def part(self, name: str) -> Unlogged:
        """See ``TrainingLog``."""
        return self

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """See ``TrainingLog``."""

    def saved(self) -> None:
        """See ``TrainingLog``."""


UNLOGGED = Unlogged()
"""What a training notes to unless it is given something else."""
