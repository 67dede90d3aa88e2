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
from dynamorouter.metrics.bootstrap import Array, Reduce


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and where it lies.

    Attributes:
        value: measured.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Return plain JSON values."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Logs:
    """The items of all arms.

    Attributes:
        numbers: by arm and task, the headline metric's numbers of every item, ``(S, N, K)``; tasks that an arm cannot
            answer are left out.
        metrics: headline metric by task.
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
        """Return what turns sums into the task's headline score."""
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
        draws = self._draws(arm, task)
        return self._interval(self.mean(arm) if task is None else self.score(arm, task), draws)

    def difference(self, first: str, second: str, task: str | None = None) -> Interval:
        """Return first minus second with a paired interval, on one task or as the mean over all."""
        value = (
            self.mean(first) - self.mean(second) if task is None else self.score(first, task) - self.score(second, task)
        )
        return self._interval(value, self._draws(first, task) - self._draws(second, task))

    def p_value(self, first: str, second: str, task: str | None = None) -> float:
        """Return the two-sided p-value of an exchange test: an item's results change sides with chance one half.

        An item changes sides in all seeds at once, since its results there are not independent.
        """
        tasks = self.tasks if task is None else [task]
        total: Array = np.zeros(self.permutations)
        for name in tasks:
            reduce = self.reduce(name)
            one, other = self.numbers[first][name], self.numbers[second][name]  # (S, N, K)
            swapped = self._exchanges(name, one.shape[1])  # (P, N)
            moved = np.einsum("pn,snk->spk", swapped, other - one, optimize=True)
            a, b = one.sum(axis=1)[:, None] + moved, other.sum(axis=1)[:, None] - moved
            total = total + (reduce(a) - reduce(b)).mean(axis=0)
        seen = abs(math.fsum(self.score(first, name) - self.score(second, name) for name in tasks))
        as_large = int((np.abs(total) >= seen - 1e-12).sum())
        return (1 + as_large) / (1 + self.permutations)

    def _draws(self, arm: str, task: str | None) -> Array:
        if task is not None:
            return self._resampled[arm][task]
        return np.asarray(np.mean([self._resampled[arm][name] for name in self.tasks], axis=0))

    @cached_property
    def _resampled(self) -> dict[str, dict[str, Array]]:
        """Scores of all arms on the same draws, by arm and task, ``(B,)``."""
        found: dict[str, dict[str, Array]] = {arm: {} for arm in self.numbers}
        seeds = next(iter(next(iter(self.numbers.values())).values())).shape[0]
        shares = np.random.default_rng([self.seed, 1]).multinomial(seeds, np.full(seeds, 1 / seeds), self.resamples)
        for place, task in enumerate(self.tasks):
            items = {own[task].shape[1] for own in self.numbers.values() if task in own}
            if len(items) != 1:
                raise DataError(f"the arms answered different numbers of items of task {task!r}: {sorted(items)}")
            count = items.pop()
            counts = np.random.default_rng([self.seed, 2, place]).multinomial(
                count, np.full(count, 1 / count), self.resamples
            )
            for arm, own in self.numbers.items():
                if task in own:
                    each = self.reduce(task)(np.einsum("bn,snk->sbk", counts.astype(float), own[task], optimize=True))
                    found[arm][task] = (each * shares.T).sum(axis=0) / seeds
        return found

    def _exchanges(self, task: str, items: int) -> Array:
        generator = np.random.default_rng([self.seed, 3, self.tasks.index(task)])
        return generator.integers(0, 2, size=(self.permutations, items)).astype(float)

    def _interval(self, value: float, draws: Array) -> Interval:
        tail = (1 - self.level) / 2
        low, high = np.quantile(draws, [tail, 1 - tail])
        return Interval(value, float(low), float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for the number of tests (Holm, 1979), in the given order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Return the exact two-sided p-value of McNemar's test (1947) on paired right and wrong answers."""
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    differing = only_first + only_second
    return float(binomtest(only_first, differing).pvalue) if differing else 1.0


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

    table = [list(own) for own in scores.values()]
    if len(table) < 2 or len({len(own) for own in table}) != 1 or len(table[0]) < 2:
        raise DataError("ranks need at least two arms, and the same two tasks or more for each")
    values = np.array(table)  # (A, T)
    arms, tasks = values.shape
    each = np.array([rankdata(-column, method="average") for column in values.T])  # (T, A)
    ranks = each.mean(axis=0)
    # by hand, as scipy's Friedman test refuses two arms
    spread = float((each**2).sum()) - tasks * arms * (arms + 1) ** 2 / 4  # less where there are ties (Conover, 1999)
    moved = tasks**2 * float(((ranks - (arms + 1) / 2) ** 2).sum())
    chi = (arms - 1) * moved / spread if spread > 1e-12 else 0.0
    spare = tasks * (arms - 1) - chi
    statistic = math.inf if spare <= 1e-12 else (tasks - 1) * chi / spare
    p_value = float(f_distribution.sf(statistic, arms - 1, (arms - 1) * (tasks - 1)))
    q = float(studentized_range.ppf(level, arms, math.inf)) / math.sqrt(2)
    critical = q * math.sqrt(arms * (arms + 1) / (6 * tasks))
    means = dict(sorted(zip(scores, ranks.tolist(), strict=True), key=lambda item: item[1]))
    return Ranking(means, critical, p_value, tasks, _cliques(means, critical))


def _cliques(ranks: Mapping[str, float], critical: float) -> list[list[str]]:
    """Return the largest runs of arms, ordered by rank, whose ends are closer than the critical difference."""
    names = list(ranks)
    found: list[list[str]] = []
    for start in range(len(names)):
        end = start
        while end + 1 < len(names) and ranks[names[end + 1]] - ranks[names[start]] <= critical:
            end += 1
        if end > start and (not found or names[end] != found[-1][-1]):
            found.append(names[start : end + 1])
    return found
