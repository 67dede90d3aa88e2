"""A task: where its data is, which columns are input and target, which head, which metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.spec import Columns

__all__ = ["Answer", "Columns", "Generation", "Task"]


@dataclass(frozen=True, slots=True)
class Generation:
    """How an expert that writes does so.

    Attributes:
        max_new_tokens: longest text, in tokens.
        temperature: 0 for greedy; above that the logits are divided by it and a token is drawn.
        top_k: draw among so many of the likeliest tokens; 0 for all.
        top_p: draw among the likeliest tokens that make up this share of the probability.
        no_repeat_ngram: no run of so many tokens is written twice; 0 allows all.
        repetition_penalty: above 1 what is written already becomes less likely.
        stop: texts that end the writing; they are left out of the answer.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    no_repeat_ngram: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()


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
        prompt: name of the form in which an expert that writes reads a row; ``None`` for that of its base.
        generation: how an expert that writes does so.
    """

    name: str
    head: str
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
    prompt: str | None = None
    generation: Generation = Generation()


def plain_task(task: Task) -> dict[str, Any]:
    """Return a task as plain JSON values that ``task_from_config`` reads back."""
    values = asdict(task)
    return {**values, "labels": list(task.labels), "metrics": list(task.metrics)}
