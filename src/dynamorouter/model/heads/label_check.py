"""Whether another order of its labels would make an imported head score better: its outputs were then misnamed.

Letters: C labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest

from dynamorouter.metrics.bootstrap import Array
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task

FAR, SLIGHT = 0.1, 0.02
"""By how much more of each label another order finds, in the mean over labels, where it is far or slightly better."""
CHANCE_FAR, CHANCE_SLIGHT = 1e-3, 0.05
"""How likely so much is by chance, at most (sign test over the rows on which the two orders differ)."""


@dataclass(frozen=True, slots=True)
class LabelCheck:
    """How a head's order of labels compares with the best one.

    Attributes:
        items: rows, or words of rows, that were compared.
        recall: share found of each label, in the mean over labels, with the labels as they are.
        best: the same with the labels in the best order.
        meant: what each label would have to be called there, where that is another one.
        chance: how likely the best order is better by so much by chance.
        is_confirmed: whether every exchange of two labels would clearly score worse.
    """

    items: int
    recall: float
    best: float
    meant: dict[str, str]
    chance: float
    is_confirmed: bool

    @property
    def is_wrong(self) -> bool:
        """Whether another order scores far better."""
        return self.best - self.recall >= FAR and self.chance <= CHANCE_FAR

    @property
    def is_doubtful(self) -> bool:
        """Whether another order scores better by more than chance."""
        return self.best - self.recall >= SLIGHT and self.chance <= CHANCE_SLIGHT

    def __str__(self) -> str:
        """Say how the two orders compare."""
        meant = ", ".join(f"{label!r} means {other!r}" for label, other in self.meant.items())
        return (
            f"on {self.items} rows or words it finds {self.recall:.3f} of each label as they are named, but "
            f"{self.best:.3f} where {meant}"
        )


def check_labels(task: Task, answered: Iterable[tuple[Record, Answer | None]]) -> LabelCheck | None:
    """Compare the order of a task's labels with all others by what its expert answers to rows.

    Args:
        task: the task.
        answered: rows and the answers to them.

    Returns:
        ``None`` where there are no labels, or nothing was answered.
    """
    counts = _confusion(task.labels, answered)
    seen = counts.sum(axis=0) > 0
    if not seen.any():
        return None
    shares = counts[:, seen] / counts[:, seen].sum(axis=0)
    whole = np.zeros_like(counts)
    whole[:, seen] = shares
    answers, truths = linear_sum_assignment(whole + 1e-9 * np.eye(len(counts)), maximize=True)
    changed = [(a, t) for a, t in zip(answers, truths, strict=True) if a != t]
    gained = sum(counts[a, t] for a, t in changed)
    lost = sum(counts[t, t] for _, t in changed)
    return LabelCheck(
        items=int(counts.sum()),
        recall=float(np.trace(whole) / seen.sum()),
        best=float(whole[answers, truths].sum() / seen.sum()),
        meant={task.labels[a]: task.labels[t] for a, t in changed},
        chance=_chance(gained, lost),
        is_confirmed=not changed and all(_is_told_apart(counts, i, j) for j in range(len(counts)) for i in range(j)),
    )


def _confusion(labels: Sequence[str], answered: Iterable[tuple[Record, Answer | None]]) -> Array:
    """Count answers by label and right label, ``(C, C)``; those of tags word by word."""
    index = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)))
    for record, answer in answered:
        if answer is None or isinstance(record.target, dict):
            continue
        right, predicted = (value if isinstance(value, list) else [value] for value in (record.target, answer.value))
        for one, other in zip(predicted, right, strict=False):
            if one in index and other in index:
                counts[index[one], index[other]] += 1
    return counts


def _is_told_apart(counts: Array, i: int, j: int) -> bool:
    """Tell whether two labels are clearly not exchanged."""
    agreed, exchanged = counts[i, i] + counts[j, j], counts[i, j] + counts[j, i]
    return bool(agreed > exchanged and _chance(agreed, exchanged) <= 0.01)


def _chance(more: float, fewer: float) -> float:
    """How likely so many more are by chance, where both are equally likely."""
    total = int(more + fewer)
    return float(binomtest(int(more), total, alternative="greater").pvalue) if total else 1.0
