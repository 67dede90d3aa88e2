"""Settings of one task: its columns, its head and metrics, and what it changes of the expert phase for itself."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_serializer, model_validator

from dynamorouter.errors import one_of, suggest
from dynamorouter.tasks.generation import GenerationSettings, SelectBy
from dynamorouter.tasks.kinds import head_kind, head_kinds
from dynamorouter.utils.options import Count, Options, Rate, Rows, Share, Size, Weight


class ColumnSettings(Options):
    """Names of a task's native columns."""

    text: str
    """The single text, the first of a pair, the question, or the list of tokens."""
    target: str
    """Label, list of tags, answers with ``text[]`` and ``answer_start[]``, or the text to be written."""
    pair: str | None = None
    """The second text, or the context of a question."""
    id: str | None = None
    """Unique identifier, if the data has one."""
    extra: dict[str, str] = Field(default_factory=dict)
    """Further columns that only a metric reads, by the name it knows them by: ``tests: test_list``."""


class HyperSettings(Options):
    """What one task may change of the expert phase for itself; ``null`` or absent keeps the phase's value."""

    rank: Count | None = None
    alpha: Rate | None = None
    rslora: bool | None = None
    dropout: Share | None = None
    targets: str | tuple[str, ...] | None = None
    trunk_depth: Size | None = None
    epochs: Count | None = None
    learning_rate: Rate | None = None
    head_learning_rate: Rate | None = None
    weight_decay: Weight | None = None
    warmup: Share | None = None
    batch_rows: Count | None = None
    patience: Size | None = None
    min_delta: Weight | None = None
    select_by: SelectBy | None = None
    train_rows: Rows = None

    @model_serializer(mode="plain")
    def _changes(self) -> dict[str, Any]:
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


class TaskSettings(Options):
    """One task; the fields of ``dynamorouter.tasks.task.Task``."""

    name: str
    """Its name, the same as the key that it stands under; set by ``compose`` when absent."""
    head: str
    """The kind of head that answers it."""
    columns: ColumnSettings
    """The native columns."""
    labels: tuple[str, ...] = ()
    """Allowed labels or tags in the order of the head's outputs; empty for spans and for texts."""
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("accuracy",)
    """Names of metrics; the first is the headline."""
    sources: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Options by data source: ``hub``, ``local``, ``builtin``."""
    version: Count = 1
    """Raised whenever the meaning of the task changes."""
    max_tokens: Annotated[int, Field(ge=8)] = 128
    """Longest window in tokens."""
    stride: Size = 32
    """Overlap in tokens between the windows of a long text."""
    hyper: HyperSettings = HyperSettings()
    """Changes of the expert phase for this task alone."""
    base: str | None = None
    """Name of the base its expert sits on, from ``base`` or ``bases``; ``null`` for the system's own."""
    positive: str | None = None
    """The label whose F1 the metric ``f1`` is; ``null`` for the mean over all labels."""
    prompt: str | None = None
    """Form in which an expert that writes reads a row; ``null`` for that of its base."""
    generation: GenerationSettings = GenerationSettings()
    """How an expert that writes does so."""

    @field_validator("head")
    @classmethod
    def _registered(cls, head: str) -> str:
        if head not in head_kinds:
            raise ValueError(
                f"got {head!r}; there is no such head{suggest(head, head_kinds)}; allowed: {one_of(head_kinds)}"
            )
        return head

    @model_validator(mode="after")
    def _complete(self) -> Self:
        wrong = head_kind(self.head).problems(self.head, self.labels, pair=self.columns.pair, extra=self.columns.extra)
        if wrong:
            raise ValueError("; ".join(wrong))
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("a label is listed twice under 'labels'")
        if self.positive is not None and self.positive not in self.labels:
            raise ValueError(
                f"positive is {self.positive!r}{suggest(self.positive, self.labels)}; allowed: {one_of(self.labels)}"
            )
        if self.stride >= self.max_tokens:
            raise ValueError(f"stride {self.stride} must be below max_tokens {self.max_tokens}")
        return self
