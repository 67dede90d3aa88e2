"""Paired statistics on the logs of items: intervals over items and seeds, exchange tests, Holm, McNemar, ranks.

Intervals are percentiles of a bootstrap (Efron, 1979) that draws items and, where there are several, seeds anew; every
arm meets the same draws, so that differences are paired. Tests exchange the two arms' results on random items. Both
work on sums over items, so that metrics such as F1 are treated like accuracies.

Letters: N items, K numbers per item, S seeds, B resamples, P exchanges, A arms, T tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dynamorouter.errors import DataError
from dynamorouter.metrics.base import get_metric
from dynamorouter.metrics.bootstrap import Array, Interval, Reduce, percentiles


@dataclass(frozen=True)
class Logs:
    """The items of all arms.

    Attributes:
        numbers: by arm and task, the primary metric's numbers of every item, ``(S, N, K)``; tasks that an arm cannot
            answer are left out.
        metrics: primary metric by task.
        resamples: B.
        permutations: P.
        level: share of the resamples inside an interval.
        seed: of the draws.
    """

    numbers: Mapping[str, Mapping[str, Array]]
    metrics: Mapping[str, str]
    resamples: int
    permutations: int
    level: float = 0.95
    seed: int = 0

    @property
    def tasks(self) -> list[str]:
        """The tasks."""
        return list(self.metrics)

    def reduce(self, task: str) -> Reduce:
        """Return what turns sums into the task's primary score."""
        return get_metric(self.metrics[task]).reduce

    def complete(self, arm: str) -> bool:
        """Tell whether an arm answers every task."""
        return set(self.numbers[arm]) == set(self.tasks)

    def score(self, arm: str, task: str) -> float:
        """Return the mean over seeds of an arm's score."""
        return float(np.mean(self.reduce(task)(self.numbers[arm][task].sum(axis=1))))

    def mean(self, arm: str) -> float:
        """Return the mean over tasks."""
        return float(np.mean([self.score(arm, task) for task in self.tasks]))

    def interval(self, arm: str, task: str | None = None) -> Interval:
        """Return an arm's score with its interval, on one task or as the mean over all."""
        value = self.mean(arm) if task is None else self.score(arm, task)
        return Interval(value, *percentiles(self._draws(arm, task), self.level))

    def difference(self, arm: str, reference: str, task: str | None = None) -> Interval:
        """Return how much better an arm is, with a paired interval, on one task or as the mean over all."""
        if task is None:
            value = self.mean(arm) - self.mean(reference)
        else:
            value = self.score(arm, task) - self.score(reference, task)
        return Interval(value, *percentiles(self._draws(arm, task) - self._draws(reference, task), self.level))

    def p_value(self, arm: str, reference: str, task: str | None = None) -> float:
        """Return the two-sided p-value of an exchange test: an item's results change sides with chance one half.

        An item changes sides in all seeds at once, since its results there are not independent.
        """
        tasks = self.tasks if task is None else [task]
        total: Array = np.zeros(self.permutations)
        for name in tasks:
            reduce = self.reduce(name)
            ours, theirs = self.numbers[arm][name], self.numbers[reference][name]  # (S, N, K)
            swapped = self._exchanges(name, ours.shape[1])  # (P, N)
            change = np.einsum("pn,snk->spk", swapped, theirs - ours, optimize=True)
            our_sums, their_sums = ours.sum(axis=1)[:, None] + change, theirs.sum(axis=1)[:, None] - change
            total = total + (reduce(our_sums) - reduce(their_sums)).mean(axis=0)
        measured = abs(math.fsum(self.score(arm, name) - self.score(reference, name) for name in tasks))
        as_large = int((np.abs(total) >= measured - 1e-12).sum())
        return (1 + as_large) / (1 + self.permutations)

    def _draws(self, arm: str, task: str | None) -> Array:
        if task is not None:
            return self._resampled[arm][task]
        return np.asarray(np.mean([self._resampled[arm][name] for name in self.tasks], axis=0))

    @cached_property
    def _resampled(self) -> dict[str, dict[str, Array]]:
        """Scores of all arms on the same draws, by arm and task, ``(B,)``."""
        scores_by_arm: dict[str, dict[str, Array]] = {arm: {} for arm in self.numbers}
        seeds = next(iter(next(iter(self.numbers.values())).values())).shape[0]
        shares = np.random.default_rng([self.seed, 1]).multinomial(seeds, np.full(seeds, 1 / seeds), self.resamples)
        for index, task in enumerate(self.tasks):
            items = {numbers[task].shape[1] for numbers in self.numbers.values() if task in numbers}
            if len(items) != 1:
                raise DataError(f"the arms answered different numbers of items of task {task!r}: {sorted(items)}")
            count = items.pop()
            draws = np.random.default_rng([self.seed, 2, index]).multinomial(
                count, np.full(count, 1 / count), self.resamples
            )
            for arm, numbers in self.numbers.items():
                if task in numbers:
                    sums = np.einsum("bn,snk->sbk", draws.astype(float), numbers[task], optimize=True)
                    scores_by_arm[arm][task] = (self.reduce(task)(sums) * shares.T).sum(axis=0) / seeds
        return scores_by_arm

    def _exchanges(self, task: str, items: int) -> Array:
        generator = np.random.default_rng([self.seed, 3, self.tasks.index(task)])
        return generator.integers(0, 2, size=(self.permutations, items)).astype(float)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for the number of tests (Holm, 1979), in the given order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def mcnemar(arm: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    """Return the exact two-sided p-value of McNemar's test (1947); ``(N,)`` each, whether answers are right."""
    from scipy.stats import binomtest

    only_arm, only_reference = int((arm & ~reference).sum()), int((reference & ~arm).sum())
    differing = only_arm + only_reference
    return float(binomtest(only_arm, differing).pvalue) if differing else 1.0


@dataclass(frozen=True, slots=True)
class Ranking:
    """Mean ranks over tasks (Demsar, 2006).

    Attributes:
        ranks: mean rank of each arm, 1 being the best; ties share their mean rank.
        critical: least difference of mean ranks that the Nemenyi test calls significant.
        p_value: of Friedman's test that all arms are alike, with Iman and Davenport's correction.
        tasks: T.
        cliques: largest groups of arms, best first, whose ends differ by less than that.
    """

    ranks: dict[str, float]
    critical: float
    p_value: float
    tasks: int
    cliques: list[list[str]]


def rank_arms(scores: Mapping[str, Sequence[float]], *, level: float = 0.95) -> Ranking:
    """Rank arms on every task, and test the mean ranks.

    Args:
        scores: of each arm, one for each task; larger is better.
        level: one minus the level of the tests.

    Raises:
        DataError: there are fewer than two arms or tasks, or the arms have different numbers of tasks.
    """
    from scipy.stats import f as f_distribution
    from scipy.stats import rankdata, studentized_range

    table = [list(arm_scores) for arm_scores in scores.values()]
    if len(table) < 2 or len({len(arm_scores) for arm_scores in table}) != 1 or len(table[0]) < 2:
        raise DataError("ranks need at least two arms, and the same two tasks or more for each")
    values = np.array(table)  # (A, T)
    arms, tasks = values.shape
    task_ranks = np.array([rankdata(-column, method="average") for column in values.T])  # (T, A)
    ranks = task_ranks.mean(axis=0)
    # by hand, as scipy's Friedman test refuses two arms
    # the spread is less where there are ties (Conover, 1999)
    spread = float((task_ranks**2).sum()) - tasks * arms * (arms + 1) ** 2 / 4
    between = tasks**2 * float(((ranks - (arms + 1) / 2) ** 2).sum())
    chi = (arms - 1) * between / spread if spread > 1e-12 else 0.0
    remainder = tasks * (arms - 1) - chi
    statistic = math.inf if remainder <= 1e-12 else (tasks - 1) * chi / remainder
    p_value = float(f_distribution.sf(statistic, arms - 1, (arms - 1) * (tasks - 1)))
    q = float(studentized_range.ppf(level, arms, math.inf)) / math.sqrt(2)
    critical = q * math.sqrt(arms * (arms + 1) / (6 * tasks))
    means = dict(sorted(zip(scores, ranks.tolist(), strict=True), key=lambda item: item[1]))
    return Ranking(means, critical, p_value, tasks, _cliques(means, critical))


def _cliques(ranks: Mapping[str, float], critical: float) -> list[list[str]]:
    """Return the largest runs of arms, ordered by rank, whose ends are closer than the critical difference."""
    names = list(ranks)
    cliques: list[list[str]] = []
    for start in range(len(names)):
        end = start
        while end + 1 < len(names) and ranks[names[end + 1]] - ranks[names[start]] <= critical:
            end += 1
        if end > start and (not cliques or names[end] != cliques[-1][-1]):
            cliques.append(names[start : end + 1])
    return cliques
