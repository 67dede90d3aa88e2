"""A task: where its data is, which columns are input and target, which head, which metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

HeadKind = Literal["classification", "tags", "span"]


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the native columns.

    Attributes:
        text: the single text, the first of a pair, the question, or the list of tokens.
        pair: the second text or the context; ``None`` for single texts.
        target: label, list of tags, or SQuAD-style answers ``{text[], answer_start[]}``.
        id: unique identifier, if the data has one.
    """

    text: str
    target: str
    pair: str | None = None
    id: str | None = None


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
