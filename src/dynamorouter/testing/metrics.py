"""The laws of metrics: sums over rows, so that one bootstrap serves all.

Letters: N rows, K sums per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dynamorouter.metrics.base import Metric, metrics
from dynamorouter.metrics.bootstrap import Array, bootstrap_ci
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.record import Target
from dynamorouter.tasks.task import Task
from dynamorouter.testing.contract import Contract, require


class MetricContract(Contract):
    """The laws of metrics.

    Attributes:
        metric: the class.
        task: a task that it judges.
        targets: of some rows, three at least and not all alike.
        answers: to the same rows, right and wrong ones; ``None`` where there is none.
        best: an answer to each row that could not be better.
    """

    metric: ClassVar[type[Metric]]
    task: ClassVar[Task]
    targets: ClassVar[Sequence[Target]]
    answers: ClassVar[Sequence[Answer | None]]
    best: ClassVar[Sequence[Answer]]

    def numbers(self, answers: Sequence[Answer | None]) -> Array:
        """Return the metric's numbers of all rows, ``(N, K)``."""
        return self.metric().rows(answers, self.targets, self.task)

    def value(self, answers: Sequence[Answer | None]) -> float:
        """Return the metric's value over all rows."""
        return float(self.metric().reduce(self.numbers(answers).sum(axis=0)))

    def test_is_what_the_registry_takes(self) -> None:
        """The class has all that a metric has, and judges the task's kind of answer."""
        require(not metrics.fault(self.metric), metrics.fault(self.metric))
        require(self.metric.answer_kind == self.best[0].kind, "it judges another kind of answer than the task's")

    def test_every_row_has_as_many_numbers(self) -> None:
        """Rows are ``(N, K)`` finite numbers, also of a row without an answer, and alone the same as beside others."""
        missing: list[Answer | None] = [None] * len(self.targets)
        for answers in (self.answers, self.best, missing):
            numbers = self.numbers(answers)
            require(numbers.ndim == 2 and len(numbers) == len(self.targets), "there is not one line of numbers a row")
            require(bool(np.isfinite(numbers).all()), "a number is not finite")
            for row, (answer, target) in enumerate(zip(answers, self.targets, strict=True)):
                alone = self.metric().rows([answer], [target], self.task)[0]
                np.testing.assert_allclose(alone, numbers[row], err_msg=f"row {row} alone has other numbers")

    def test_the_order_of_rows_changes_nothing(self) -> None:
        """The value is one of sums."""
        numbers = self.numbers(self.answers)
        order = np.random.default_rng(0).permutation(len(numbers))
        there, back = (self.metric().reduce(rows.sum(axis=0)) for rows in (numbers, numbers[order]))
        np.testing.assert_allclose(there, back)

    def test_many_sums_are_reduced_at_once(self) -> None:
        """``reduce`` takes sums ``(..., K)``, as the bootstrap gives them, and means the same of each."""
        sums = np.random.default_rng(0).integers(0, 3, size=(5, len(self.targets))) @ self.numbers(self.answers)
        reduce = self.metric().reduce
        np.testing.assert_allclose(reduce(sums), [float(reduce(one)) for one in sums])

    def test_no_answers_are_better_than_the_best(self) -> None:
        """The best answers have the best value, and it is better than that of the others."""
        sign = 1 if self.metric.higher_is_better else -1
        best, some = self.value(self.best), self.value(self.answers)
        require(sign * best > sign * some, f"the best answers have {best}, and worse ones {some}")

    def test_the_interval_of_the_bootstrap_is_one(self) -> None:
        """The bootstrap gives two finite ends, the lower first."""
        low, high = bootstrap_ci(self.numbers(self.answers), self.metric().reduce, seed=0, resamples=50)
        require(bool(np.isfinite([low, high]).all()) and low <= high, f"the interval is {low} to {high}")
