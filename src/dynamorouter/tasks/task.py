"""A task: where its data is, which columns are input and target, which head, which metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dynamorouter.data.spec import Columns, HeadKind

__all__ = ["Answer", "Columns", "HeadKind", "Task"]


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a system.

    Attributes:
        name: its name, also the folder of its local data.
        head: the kind of head that answers it.
        columns: the native columns.
        labels: the allowed labels or tags, in the order of the head's outputs; empty for spans.
        metrics: names of metrics; the first is the headline.
        sources: per source name (``hub``, ``local``, ``builtin``) its options.
        version: raised whenever the meaning of the task changes.
        max_tokens: longest window in tokens.
        stride: overlap in tokens between the windows of a long text.
        hyper: overrides of the expert phase for this task alone (``epochs``, ``learning_rate``, ...).
        base: name of the base that the expert sits on; ``None`` for the system's default base.
        positive: the label whose F1 the metric ``f1`` is; ``None`` for the mean over all labels.
    """

    name: str
    head: HeadKind
    columns: Columns
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    version: int = 1
    max_tokens: int = 128
    stride: int = 32
    hyper: Mapping[str, Any] = field(default_factory=dict)
    base: str | None = None
    positive: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a head answers for one row.

    Attributes:
        kind: the kind of head that answered; an answer of another kind than the target scores zero.
        value: a label, one tag per whitespace-separated word, or the answer's text.
        score: the head's own probability of the answer, between 0 and 1.
    """

    kind: HeadKind
    value: str | list[str]
    score: float
