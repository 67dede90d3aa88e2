"""The scores of SQuAD 2.0 (Rajpurkar et al., 2018), whose questions a context may leave open.

A row without gold answers is right where the answer is empty. Of the two groups of rows, each also has its own score.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from dynamorouter.metrics.base import Metric, gold_answers, mean, metrics, normalise_answer, token_f1
from dynamorouter.metrics.bootstrap import Array
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.record import Target
from dynamorouter.tasks.task import Task


class _Squad2(Metric):
    """The mean over rows of the best exact match or token F1 against any gold answer, or against none.

    Attributes:
        exact: whether the whole answer must match.
        group: which rows count.
    """

    answer_kind = "span"
    exact: ClassVar[bool]
    group: ClassVar[Literal["all", "answer", "no answer"]] = "all"

    def row(self, answer: Answer | None, target: Target, task: Task) -> tuple[float, ...]:
        """Return the best value, and 1; twice 0 for a row of the other group."""
        golds = [gold for text in gold_answers(target) if (gold := normalise_answer(text))]
        if self.group not in ("all", "answer" if golds else "no answer"):
            return 0.0, 0.0
        if answer is None:
            return 0.0, 1.0
        predicted = normalise_answer(str(answer.value))
        if self.exact or not golds or not predicted:
            return float(predicted in (golds or [""])), 1.0
        return max(token_f1(predicted.split(), gold.split()) for gold in golds), 1.0

    def reduce(self, sums: Array) -> Array:
        """Return the mean over the group's rows."""
        return mean(sums)


@metrics.register("squad2_em")
class Squad2ExactMatch(_Squad2):
    """Exact match (SQuAD 2.0)."""

    exact = True


@metrics.register("squad2_f1")
class Squad2F1(_Squad2):
    """Token F1 (SQuAD 2.0)."""

    exact = False


@metrics.register("squad2_has_answer_em")
class Squad2HasAnswerExactMatch(_Squad2):
    """Exact match over the questions that have an answer (``HasAns_exact``)."""

    exact, group = True, "answer"


@metrics.register("squad2_has_answer_f1")
class Squad2HasAnswerF1(_Squad2):
    """Token F1 over the questions that have an answer (``HasAns_f1``)."""

    exact, group = False, "answer"


@metrics.register("squad2_no_answer")
class Squad2NoAnswer(_Squad2):
    """The share of questions without an answer that are left open (``NoAns_exact`` and ``NoAns_f1``)."""

    exact, group = True, "no answer"
