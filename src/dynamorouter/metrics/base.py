"""Metrics as sums over rows, on a scale from 0 to 1 unless they say otherwise.

Letters: N rows, K sums per row. A metric turns each row into K numbers and the sums of those into a value, so that one
bootstrap serves all metrics. An answer of another kind than the task's head, or none (the router abstained), is wrong.
Metrics of generated text are in ``text``, those that run generated code in ``code``.
"""

from __future__ import annotations

import re
import string
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dynamorouter.errors import ConfigError, DataError
from dynamorouter.metrics.bootstrap import Array
from dynamorouter.registry import Registry
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.kinds import head_kind
from dynamorouter.tasks.kinds.tagging import entities
from dynamorouter.tasks.record import Record, Target
from dynamorouter.tasks.task import Task

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Metric(ABC):
    """One metric.

    Attributes:
        answer_kind: the kind of answer that it judges.
        higher_is_better: whether a larger value is a better one.
        reads_loss: whether it judges the loss of the target's text (``Answer.nll``) and not what was generated.
        samples: how many texts of a row it judges at least.
    """

    answer_kind: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    reads_loss: ClassVar[bool] = False
    samples: ClassVar[int] = 1

    @classmethod
    def target_problem(cls, target: Target) -> str | None:
        """Return why a target can never be scored, whatever is answered; ``None`` where it can."""
        return None

    @abstractmethod
    def row(self, answer: Answer | None, target: Target, task: Task) -> tuple[float, ...]:
        """Return the K numbers of one row; ``answer`` is ``None`` where there is none of the task's kind."""

    def rows(self, answers: Sequence[Answer | None], targets: Sequence[Target], task: Task) -> Array:
        """Return the numbers of many rows, ``(N, K)``; a metric that can judge rows side by side does so here."""
        pairs = zip(answers, targets, strict=True)
        return np.array([self.row(answer, target, task) for answer, target in pairs], dtype=float)

    @abstractmethod
    def reduce(self, sums: Array) -> Array:
        """Turn sums over rows ``(..., K)`` into values ``(...)``."""


metrics: Registry[type[Metric]] = Registry(
    "metric", "dynamorouter.metrics", group="metrics", contract="dynamorouter.metrics.base:Metric"
)


def row_statistics(metric: str, task: Task, answers: Sequence[Answer | None], records: Sequence[Record]) -> Array:
    """Return the numbers of every row, ``(N, K)``, in the records' order.

    Raises:
        DataError: there are no rows, or not one answer for each.
    """
    if not records or len(answers) != len(records):
        raise DataError(
            f"task {task.name!r}: {len(answers)} answers for {len(records)} rows; "
            "give one for each row, None where there is no answer, and at least one row"
        )
    scorer = metrics.get(metric)()
    kind = head_kind(task.head).answer_kind
    of_kind = [answer if answer is not None and answer.kind == kind else None for answer in answers]
    return scorer.rows(of_kind, [record.target for record in records], task)


def score(
    task: Task,
    answers: Sequence[Answer | None],
    records: Sequence[Record],
    *,
    metrics: Sequence[str] | None = None,
) -> dict[str, float]:
    """Score answers against the records' targets.

    Args:
        task: whose rows they are.
        answers: one per record; ``None`` where the router abstained.
        records: the rows.
        metrics: names; the task's own by default.

    Returns:
        The value of each metric.

    Raises:
        ConfigError: there is no metric of that name.
        DataError: there are no rows, or not one answer for each.
    """
    return {
        name: float(get_metric(name).reduce(row_statistics(name, task, answers, records).sum(axis=0)))
        for name in (task.metrics if metrics is None else metrics)
    }


def get_metric(name: str) -> Metric:
    """Return the metric called ``name``.

    Raises:
        ConfigError: there is none.
    """
    return metrics.get(name)()


def check_metrics(tasks: Sequence[Task]) -> None:
    """Make sure that all metrics of the tasks can be computed here, before hours are spent on what they judge.

    Raises:
        MissingExtraError: one needs a package that is not installed.
        ConfigError: there is no metric of a name, or one needs more texts of a row than a run generates.
    """
    for name in sorted({name for task in tasks for name in task.metrics}):
        samples = get_metric(name).samples
        if samples > 1:
            raise ConfigError(
                f"metric {name!r} needs {samples} texts of each row, but a run generates one; take pass_at_1 there, "
                f"and score lists of {samples} or more of your own with dynamorouter.metrics.base.score"
            )


def target_problem(task: Task, target: Target) -> str | None:
    """Return why one of a task's metrics can never score a row with this target; ``None`` where all can."""
    problems = ((name, metrics.get(name).target_problem(target)) for name in task.metrics)
    return next((f"metric {name!r} {problem}" for name, problem in problems if problem is not None), None)


def mean(sums: Array) -> Array:
    """Return the first sum over the second, ``(..., 2)`` to ``(...)``; 0 where there is nothing to divide by."""
    return _divide(sums[..., 0], sums[..., 1])


def _divide(top: Array, bottom: Array) -> Array:
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


@metrics.register("accuracy")
class Accuracy(Metric):
    """The share of rows whose label is right."""

    answer_kind = "classification"

    def row(self, answer: Answer | None, target: Target, task: Task) -> tuple[float, ...]:
        """Return whether the label is right, and 1."""
        return float(answer is not None and answer.value == target), 1.0

    def reduce(self, sums: Array) -> Array:
        """Return the mean."""
        return mean(sums)


@metrics.register("f1")
class F1(Metric):
    """F1 of the task's positive label, or without one the mean of all labels' F1.

    Labels that are neither answered nor right anywhere do not count in the mean. A row without an answer is a miss of
    its label and a false alarm of none.
    """

    answer_kind = "classification"

    def row(self, answer: Answer | None, target: Target, task: Task) -> tuple[float, ...]:
        """Return hit, false alarm and miss of each counted label, one label after another."""
        labels = task.labels if task.positive is None else (task.positive,)
        value = None if answer is None else answer.value
        return tuple(
            float(cell)
            for label in labels
            for cell in (
                value == label and target == label,
                value == label and target != label,
                value != label and target == label,
            )
        )

    def reduce(self, sums: Array) -> Array:
        """Return the mean F1 of the counted labels."""
        hits, alarms, misses = (sums[..., start::3] for start in range(3))
        counted = (hits + alarms + misses > 0).sum(axis=-1).astype(float)
        return _divide(_divide(2 * hits, 2 * hits + alarms + misses).sum(axis=-1), counted)


def normalise_answer(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces: the official SQuAD normalisation."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def gold_answers(target: Target) -> list[str]:
    """Return the gold answers of a span task's target.

    Raises:
        DataError: it is the target of another kind of task.
    """
    if not isinstance(target, dict):
        raise DataError(f"a span target must be {{'texts': [...], 'starts': [...]}}, got {type(target).__name__}")
    return [str(text) for text in target["texts"]]


class _Squad(Metric):
    """A score of SQuAD v1.1, in which every question has an answer."""

    answer_kind = "span"

    @classmethod
    def target_problem(cls, target: Target) -> str | None:
        """Return that there is no gold answer."""
        if gold_answers(target):
            return None
        return "finds no gold answer; take squad2_em and squad2_f1 for questions without an answer"


@metrics.register("squad_em")
class SquadExactMatch(_Squad):
    """The share of answers equal to one of the gold answers after normalisation (SQuAD v1.1)."""

    def row(self, answer: Answer | None, target: Target, task: Task) -> tuple[float, ...]:
        """Return whether a gold answer is met, and 1."""
        golds = {normalise_answer(gold) for gold in gold_answers(target)}
        return float(answer is not None and normalise_answer(str(answer.value)) in golds), 1.0

    def reduce(self, sums: Array) -> Array:
        """Return the mean."""
        return mean(sums)


@metrics.register("squad_f1")
class SquadF1(_Squad):
    """The mean over rows of the best token F1 against any gold answer (SQuAD v1.1)."""

    def row(self, answer: Answer | None, target: Target, task: Task) -> tuple[float, ...]:
        """Return the best F1, and 1."""
        golds = gold_answers(target)
        if answer is None:
            return 0.0, 1.0
        prediction = normalise_answer(str(answer.value)).split()
        return max((token_f1(prediction, normalise_answer(gold).split()) for gold in golds), default=0.0), 1.0

    def reduce(self, sums: Array) -> Array:
        """Return the mean."""
        return mean(sums)


def token_f1(prediction: list[str], gold: list[str]) -> float:
    """Return the F1 of two bags of tokens."""
    same = (Counter(prediction) & Counter(gold)).total()
    return 2.0 * same / (len(prediction) + len(gold)) if same else 0.0


def _entity_counts(answer: Answer | None, target: Target) -> tuple[float, ...]:
    """Return entities found rightly, entities answered, and gold entities; no answer misses them all."""
    gold = entities(list(target))
    if answer is None:
        return 0.0, 0.0, float(len(gold))
    predicted = entities(list(answer.value))
    return float(len(gold & predicted)), float(len(predicted)), float(len(gold))


@metrics.register("entity_f1")
class EntityF1(Metric):
    """F1 over all entities of all rows; an entity is right where type, first and last word are."""

    answer_kind = "tags"

    def row(self, answer: Answer | None, target: Target, task: Task) -> tuple[float, ...]:
        """Return entities found rightly, answered, and gold."""
        return _entity_counts(answer, target)

    def reduce(self, sums: Array) -> Array:
        """Return the harmonic mean of precision and recall."""
        return _divide(2 * sums[..., 0], sums[..., 1] + sums[..., 2])


@metrics.register("entity_precision")
class EntityPrecision(Metric):
    """The share of answered entities that are right."""

    answer_kind = "tags"

    def row(self, answer: Answer | None, target: Target, task: Task) -> tuple[float, ...]:
        """Return entities found rightly, answered, and gold."""
        return _entity_counts(answer, target)

    def reduce(self, sums: Array) -> Array:
        """Return right over answered."""
        return mean(sums)


@metrics.register("entity_recall")
class EntityRecall(Metric):
    """The share of gold entities that are found."""

    answer_kind = "tags"

    def row(self, answer: Answer | None, target: Target, task: Task) -> tuple[float, ...]:
        """Return entities found rightly, answered, and gold."""
        return _entity_counts(answer, target)

    def reduce(self, sums: Array) -> Array:
        """Return right over gold."""
        return _divide(sums[..., 0], sums[..., 2])
