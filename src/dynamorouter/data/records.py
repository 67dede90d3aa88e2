"""The unified record: one example of one task, and its JSONL form.

``text`` and ``pair`` are what a router may read; ``target`` is what it may not.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

Target = str | list[str] | dict[str, list[Any]]
"""A label; one tag per whitespace-separated word of the text; or ``{"texts": [...], "starts": [...]}``."""


@dataclass(frozen=True, slots=True)
class Record:
    """One example in the unified form.

    Attributes:
        text: the single text, the first of a pair, the question, or the words joined by single spaces.
        pair: the second text, or the context that a question is about; ``None`` for single texts.
        task_id: position of the task in the system's list of tasks.
        task_name: name of the task.
        target: label, tags, or answers, by the task's head (see ``Target``).
        id: unique within the task and stable between runs.
    """

    text: str
    pair: str | None
    task_id: int
    task_name: str
    target: Target
    id: str

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return asdict(self)
