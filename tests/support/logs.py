"""A log of training that a test can read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class KeptLog:
    """Keeps what it is told.

    Attributes:
        notes: part, step and values of each note.
        on_saved: called after each checkpoint.
        name: of the part.
    """

    notes: list[tuple[str, int, Mapping[str, float]]] = field(default_factory=list)
    on_saved: Callable[[], None] = lambda: None
    name: str = ""

    def part(self, name: str) -> KeptLog:
        """Return the same log under another name."""
        return replace(self, name=name)

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the values."""
        self.notes.append((self.name, step, dict(values)))

    def saved(self) -> None:
        """Call what a checkpoint calls."""
        self.on_saved()
