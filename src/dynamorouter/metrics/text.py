"""Metrics of generated text: ROUGE, BLEU, exact answers, and the loss of a language model.

ROUGE (Lin, 2004) is what ``rouge-score`` computes, BLEU (Papineni et al., 2002) what ``sacrebleu`` does; both come with
``pip install 'dynamorouter[text]'``. A target is a text, or ``{"texts": [...]}`` with several that are equally right.
Only what was generated is judged: an answer's value never holds the prompt.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from dynamorouter.errors import DataError, MissingExtraError
from dynamorouter.metrics.base import Metric, mean, metrics
from dynamorouter.metrics.bootstrap import Array
from dynamorouter.metrics.numbers import final_number
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.record import Target
from dynamorouter.tasks.task import Task
from dynamorouter.tasks.text import normalise


def gold_texts(target: Target, metric: str) -> list[str]:
    """Return the texts that are right.

    Raises:
        DataError: the target holds none.
    """
    texts = [target] if isinstance(target, str) else target.get("texts") if isinstance(target, dict) else None
    if not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(
            f'metric {metric!r} needs a text as target, or {{"texts": [...]}} with one at least; '
            f"got {str(target)[:60]!r}"
        )
    return texts


def generated_text(answer: Answer) -> str:
    """Return what was generated; of several texts for one row the first."""
    return answer.value if isinstance(answer.value, str) else "".join(answer.value[:1])


@cache
def _optional_module(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"this metric needs {package}; install it with `pip install 'dynamorouter[text]'`, or take the metric "
            "out of the task's `metrics`"
        ) from error


class _Rouge(Metric):
    """The mean over rows of the best F1 against any right text, words stemmed by Porter's rules."""

    answer_kind = "text"
    kind: ClassVar[str]

    def __init__(self) -> None:
        self._scorer = _rouge_scorer(self.kind)

    def row(self, answer: Answer | None, target: Target, task: Task) -> tuple[float, ...]:
        """Return the best F1, and 1."""
        golds = gold_texts(target, self.kind)
        if answer is None:
            return 0.0, 1.0
        return max(self._scorer.score(gold, generated_text(answer))[self.kind].fmeasure for gold in golds), 1.0

    def reduce(self, sums: Array) -> Array:
        """Return the mean."""
        return mean(sums)


@cache
def _rouge_scorer(kind: str) -> Any:
    return _optional_module("rouge_score.rouge_scorer", "rouge-score").RougeScorer([kind], use_stemmer=True)


@metrics.register("rouge1")
class Rouge1(_Rouge):
    """ROUGE-1: F1 over single words."""

    kind = "rouge1"


@metrics.register("rouge2")
class Rouge2(_Rouge):
    """ROUGE-2: F1 over pairs of neighbouring words."""

    kind = "rouge2"


@metrics.register("rougeL")
class RougeL(_Rouge):
    """ROUGE-L: F1 over the longest common subsequence of words."""

    kind = "rougeL"


_ORDERS = 4


@metrics.register("bleu")
class Bleu(Metric):
    """BLEU of all rows together (13a tokens, four orders, exponential smoothing), from 0 to 1.

    A row's numbers are matches and n-grams of each order, and both lengths. A row without an answer counts as an empty
    text: its words are missing, which the brevity penalty punishes.
    """

    answer_kind = "text"

    def __init__(self) -> None:
        self._bleu = _bleu()

    def row(self, answer: Answer | None, target: Target, task: Task) -> tuple[float, ...]:
        """Return matches by order, n-grams by order, generated length and length of the nearest right text."""
        generated = "" if answer is None else generated_text(answer)
        # The effective order changes a sentence's score alone, which is not read here, and keeps the library silent.
        bleu = self._bleu.sentence_score(generated, gold_texts(target, "bleu"))
        return tuple(map(float, (*bleu.counts, *bleu.totals, bleu.sys_len, bleu.ref_len)))

    def reduce(self, sums: Array) -> Array:
        """Return BLEU of the summed counts."""
        return np.apply_along_axis(_bleu_of, -1, sums)


@cache
def _bleu() -> Any:
    return _optional_module("sacrebleu.metrics", "sacrebleu").BLEU(effective_order=True)


def _bleu_of(sums: Array) -> float:
    counts = np.rint(sums).astype(int).tolist()
    matches, totals, (length, gold_length) = counts[:_ORDERS], counts[_ORDERS : 2 * _ORDERS], counts[2 * _ORDERS :]
    if length == 0:
        return 0.0
    return float(_bleu().compute_bleu(matches, totals, length, gold_length, smooth_method="exp").score) / 100.0


@metrics.register("text_match")
class TextMatch(Metric):
    """The share of rows whose whole text is a right one, but for case, punctuation and spaces."""

    answer_kind = "text"

    def row(self, answer: Answer | None, target: Target, task: Task) -> tuple[float, ...]:
        """Return whether the text is right, and 1."""
        golds = {normalise(gold) for gold in gold_texts(target, "text_match")}
        return float(answer is not None and normalise(generated_text(answer)) in golds), 1.0

    def reduce(self, sums: Array) -> Array:
        """Return the mean."""
        return mean(sums)


@metrics.register("final_number")
class FinalNumber(Metric):
    """The share of rows whose final number equals that of a right text."""

    answer_kind = "text"

    @classmethod
    def target_problem(cls, target: Target) -> str | None:
        """Return that a right text holds no number, if one does not."""
        for gold in gold_texts(target, "final_number"):
            if final_number(gold) is None:
                return f"finds no number in the target {gold[-60:]!r}; end it with '#### N', or choose another metric"
        return None

    def row(self, answer: Answer | None, target: Target, task: Task) -> tuple[float, ...]:
        """Return whether the numbers are equal, and 1."""
        golds = {final_number(gold) for gold in gold_texts(target, "final_number")}
        if None in golds:
            raise DataError(f"task {task.name!r}: metric 'final_number' {self.target_problem(target)}")
        return float(answer is not None and final_number(generated_text(answer)) in golds), 1.0

    def reduce(self, sums: Array) -> Array:
        """Return the mean."""
        return mean(sums)


class _Loss(Metric):
    """What the target's text costs, nothing else in it: no other loss, and no token of the prompt.

    Rows without an answer are left out; with none at all the value is not a number.
    """

    answer_kind = "text"
    higher_is_better = False
    reads_loss = True

    def row(self, answer: Answer | None, target: Target, task: Task) -> tuple[float, ...]:
        """Return the summed negative log-likelihood of the target's tokens in nats, and how many they are."""
        if answer is None:
            return 0.0, 0.0
        if answer.nll is None or answer.tokens < 1:
            raise DataError(
                f"task {task.name!r}: its answers carry no loss of the target's text, which lm_loss and perplexity are "
                "made of; score with a head that generates (causal_lm or seq2seq), or take these metrics out"
            )
        return answer.nll, float(answer.tokens)


def _per_token(sums: Array) -> Array:
    blank = np.full_like(sums[..., 0], np.nan)
    return np.divide(sums[..., 0], sums[..., 1], out=blank, where=sums[..., 1] > 0)


@metrics.register("lm_loss")
class LmLoss(_Loss):
    """The mean negative log-likelihood of a token of the target's text, in nats; less is better."""

    def reduce(self, sums: Array) -> Array:
        """Return the loss per token."""
        return _per_token(sums)


@metrics.register("perplexity")
class Perplexity(_Loss):
    """The exponential of ``lm_loss``: among how many tokens the model is in doubt; less is better."""

    def reduce(self, sums: Array) -> Array:
        """Return the exponential of the loss per token."""
        return np.asarray(np.exp(_per_token(sums)))
