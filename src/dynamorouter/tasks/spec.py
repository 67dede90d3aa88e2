"""What the data rooms need to know of a task: ``tasks.task.Task`` has all of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""A task's name is a folder's name too, so it can hold neither dots nor slashes."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the native columns.

    Attributes:
        text: the single text, the first of a pair, the question, or the list of tokens.
        pair: the second text or the context; ``None`` for single texts.
        target: label, list of tags, SQuAD-style answers ``{text[], answer_start[]}``, or the text to be written (a list
            for several that are equally right).
        id: unique identifier, if the data has one.
        extra: further columns that only a metric reads, such as tests of written code, by the name they get in the
            target.
    """

    text: str
    target: str
    pair: str | None = None
    id: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    def needed(self) -> tuple[str, ...]:
        """Return the columns that every row must have."""
        columns = (self.text, self.pair, self.target, *self.extra.values())
        return tuple(column for column in columns if column is not None)


class TaskSpec(Protocol):
    """The part of a task that sources and preparation read."""

    @property
    def name(self) -> str:
        """Name of the task, also the folder of its local data."""

    @property
    def head(self) -> str:
        """Name of the kind of head."""

    @property
    def columns(self) -> Columns:
        """The native columns."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The allowed labels or tags; empty for spans."""

    @property
    def sources(self) -> Mapping[str, Mapping[str, Any]]:
        """Options per source name."""

    @property
    def version(self) -> int:
        """Version of the task's meaning."""

    @property
    def max_tokens(self) -> int:
        """Longest window in tokens."""

    @property
    def stride(self) -> int:
        """Overlap in tokens between the windows of a long text."""
