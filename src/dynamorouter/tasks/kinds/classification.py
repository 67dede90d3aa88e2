"""One label for a text or a pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from dynamorouter.tasks.kinds.base import (
    AnswerValue,
    HeadKind,
    NativeRow,
    Noise,
    RowProblem,
    head_kinds,
    unknown_labels,
)
from dynamorouter.tasks.labels import is_missing, match_label
from dynamorouter.tasks.record import Record, Target


@head_kinds.register("classification")
class ClassificationKind(HeadKind):
    """The target is a label."""

    answer_kind = "classification"
    needs_labels = True
    classes = "row"
    noise: ClassVar[Mapping[str, Noise]] = {"text": "words", "pair": "words"}

    def target(self, row: NativeRow) -> Target | RowProblem:
        """Return the label."""
        label = match_label(row.target, row.labels)
        if label is None and is_missing(row.target):
            return RowProblem("no_label", "the label is empty")
        return unknown_labels([row.target], row.labels) if label is None else label

    def most_frequent(self, targets: Sequence[Target]) -> Callable[[Record], AnswerValue]:
        """Return the most frequent label for every row."""
        label = Counter(map(str, targets)).most_common(1)[0][0]
        return lambda record: label

    def stratum(self, target: Target) -> str:
        """Return the label."""
        return str(target)

    def class_of(self, target: Target) -> str | None:
        """Return the label."""
        return str(target)
