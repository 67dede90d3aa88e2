"""Metrics of generated text against the libraries that define them, and against cases worked out by hand."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamorouter.errors import DataError, MissingExtraError
from dynamorouter.metrics import text as text_metrics
from dynamorouter.metrics.base import check_metrics, get_metric, metrics, row_statistics, score
from dynamorouter.metrics.bootstrap import bootstrap_ci
from dynamorouter.metrics.numbers import final_number
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.record import Record, Target
from dynamorouter.tasks.task import Columns, Task

WRITE = Task(name="write", head="causal_lm", columns=Columns(text="text", target="summary"))
TEXT_METRICS = [name for name in metrics if metrics.get(name).answer_kind == "text" and not name.startswith("pass_at")]
SCORED = [name for name in TEXT_METRICS if metrics.get(name).higher_is_better]
VOCABULARY = ["the", "cats", "sat", "on", "a", "mat", "running", "ran", "3", "Paris", "."]
WORDS = st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=12)


def of(name: str, said: Sequence[str | None], targets: Sequence[Target], *, task: Task = WRITE) -> float:
    answers = [None if text is None else Answer("text", text, 1.0) for text in said]
    records = [Record("x", None, 0, task.name, target, str(i)) for i, target in enumerate(targets)]
    return score(task, answers, records, metrics=[name])[name]


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_rouge_is_that_of_rouge_score(rows: list[tuple[list[str], list[str]]]) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    pairs = [(" ".join(said), " ".join(gold)) for said, gold in rows]
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=True)
    for kind in kinds:
        expected = np.mean([scorer.score(gold, said)[kind].fmeasure for said, gold in pairs])
        assert of(kind, [said for said, _ in pairs], [gold for _, gold in pairs]) == pytest.approx(expected)


def test_rouge_of_known_cases() -> None:
    # Stemming makes "cats"/"cat" and "running"/"run" equal: 3 of 3 and 3 of 4 words, of the pairs 1 of 2 and 1 of 3.
    said, gold = "the cats running", "the cat was running"
    assert of("rouge1", [said], [gold]) == pytest.approx(2 * 3 / 7)
    assert of("rouge2", [said], [gold]) == pytest.approx(2 * 1 / 5)
    assert of("rougeL", ["b a c"], ["a b c"]) == pytest.approx(2 / 3)
    assert of("rouge1", ["b a"], [{"texts": ["x y", "a b"]}]) == 1.0


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_bleu_is_sacrebleus_over_the_corpus(rows: list[tuple[list[str], list[str]]]) -> None:
    import sacrebleu

    said, gold = [" ".join(row[0]) for row in rows], [" ".join(row[1]) for row in rows]
    expected = sacrebleu.corpus_bleu(said, [gold]).score / 100
    assert of("bleu", said, list(gold)) == pytest.approx(expected)


def test_bleu_takes_several_right_texts_and_missing_answers() -> None:
    import sacrebleu

    said = ["the cat sat on the mat today", "dogs bark very loudly at night"]
    one, two = ["the cat sat on a mat today", "dogs bark"], ["a cat sat on the mat", "dogs bark loudly at night"]
    expected = sacrebleu.corpus_bleu(said, [one, two]).score / 100
    assert of("bleu", list(said), [{"texts": [a, b]} for a, b in zip(one, two, strict=True)]) == pytest.approx(expected)
    assert of("bleu", [said[0], None], [said[0], said[1]]) < of("bleu", [said[0]], [said[0]]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She pays 3 * 4 = 12.\n#### 12", 12),
        ("#### 1,234", 1234),
        ("#### -1,000.50", Fraction(-2001, 2)),
        ("#### $18.00", 18),
        ("#### -$5", -5),
        ("#### $-5", -5),
        ("#### \u22125", -5),
        ("#### 50%", 50),
        ("#### \u20ac 7", 7),
        ("####7 apples, not 9", 7),
        ("#### 1,00,000", 100000),
        ("#### 1,234,56", 123456),
        ("#### 5, 10", 5),
        ("#### 1 000", 1000),
        ("so 12,34,567 rupees", 1234567),
        ("1'234\u2019567.5 francs", Fraction("1234567.5")),
        ("it is 1\u202f500", 1500),
        ("it is 1 050 000", 1050000),
        ("of 2 100 dollar bills", 100),
        ("10{,}000", 10000),
        ("#### 1.5e3", 1500),
        ("#### 3/8", Fraction(3, 8)),
        ("#### -1 1/2", Fraction(-3, 2)),
        ("it is 2\u00bd", Fraction(5, 2)),
        ("\\boxed{\\dfrac{3}{8}} of it, so 5 of 8", Fraction(3, 8)),
        ("48/2 = 24", 24),
        ("#### 3/0", None),
        ("The answer is \\boxed{42}. (Check: 6*7)", 42),
        ("\\boxed{1}, no: \\boxed{2}, see 3", 2),
        ("\\boxed{x}, so 3", 3),
        ("#### 18\n\nQuestion: and 20?\n#### 40", 18),
        ("####\nthe answer is 8", 8),
        ("so it is 5.", 5),
        ("5-3 leaves 10-8", 8),
        ("10 - 5", 5),
        ("page 3-4", 4),
        ("covid-19", 19),
        ("- 3 apples\n- 4 pears", 4),
        ("a loss of -.25", Fraction(-1, 4)),
        ("the answer is .5", Fraction(1, 2)),
        ("1,2", 2),
        ("$1,000,000", 1000000),
        ("\\boxed{42}.", 42),
        ("(-3)", -3),
        ("none", None),
        ("", None),
        ("####", None),
    ],
)
def test_final_numbers(text: str, number: Fraction | int | None) -> None:
    assert final_number(text) == number


@given(value=st.integers(-(10**9), 10**9), cents=st.integers(0, 99))
def test_a_number_is_read_however_it_is_written(value: int, cents: int) -> None:
    exact = Fraction(value) + (Fraction(cents, 100) if value >= 0 else -Fraction(cents, 100))
    sign = "-" if value < 0 else ""
    for written in (f"{value}.{cents:02d}", f"{value:,}.{cents:02d}", f"{sign}${abs(value):,}.{cents:02d}"):
        assert final_number(f"Steps 1 and 2.\n#### {written}") == exact
        assert final_number(f"The answer is {written}.") == exact


def test_a_number_without_end_is_none() -> None:
    assert final_number("1" * 5000) is None
    assert final_number("#### 7\n" + "1" * 5000) == 7
    for long in ("1" * 50_000, "123 " * 12_000, "1/" * 25_000, "1/" + "2" * 50_000, "1," * 25_000):
        final_number(long)  # takes no time that grows with the square of its length
    assert final_number("3\n####\n5") == 5  # none follows on its line, so the last number is taken


def test_final_answers_are_compared_as_numbers() -> None:
    targets: list[Target] = ["1 + 1 = 2\n#### 2"] * 4
    assert of("final_number", ["#### 2.0", "it is 2", "#### 3", None], targets) == 0.5
    assert of("final_number", ["no idea"], ["#### 0"]) == 0.0
    with pytest.raises(
        DataError,
        match=r"task 'write': metric 'final_number' finds no number in .*'one'; .*#### N",
    ):
        of("final_number", ["1"], ["one"])


def test_texts_match_but_for_case_punctuation_and_spaces() -> None:
    assert of("text_match", [" sci tech.", "World news", None], ["Sci-Tech", "World", "World"]) == pytest.approx(1 / 3)


def loss(values: list[tuple[float, int] | None]) -> tuple[float, float]:
    answers = [None if v is None else Answer("text", "", 1.0, nll=v[0], tokens=v[1]) for v in values]
    records = [Record("x", None, 0, "write", "y", str(i)) for i in range(len(values))]
    found = score(WRITE, answers, records, metrics=["lm_loss", "perplexity"])
    return found["lm_loss"], found["perplexity"]


def test_loss_is_per_token_and_nothing_else_is_in_it() -> None:
    assert loss([(6.0, 2), (2.0, 6)]) == pytest.approx((1.0, math.e))
    assert loss([(6.0, 2), None]) == pytest.approx((3.0, math.exp(3.0)))
    assert all(math.isnan(value) for value in loss([None]))
    with pytest.raises(DataError, match="carry no loss"):
        of("lm_loss", ["x"], ["x"])
    assert not get_metric("lm_loss").higher_is_better


@pytest.mark.parametrize("name", TEXT_METRICS)
def test_every_metric_reduces_many_sums_as_it_reduces_one(name: str) -> None:
    metric = get_metric(name)
    right = Answer("text", "the cat sat on 5 mats", 1.0, nll=2.0, tokens=4)
    records = [Record("x", None, 0, "write", "the cat sat on 5 mats", str(i)) for i in range(6)]
    rows = row_statistics(name, WRITE, [right, None] * 3, records)
    many = np.stack([rows[:k].sum(axis=0) for k in range(1, 7)])
    values = metric.reduce(many)
    assert values.shape == (6,)
    assert values == pytest.approx([float(metric.reduce(sums)) for sums in many])
    assert metric.reduce(np.stack([many, many])).shape == (2, 6)
    low, high = bootstrap_ci(np.tile(rows, (20, 1)), metric.reduce, seed=0, resamples=20)
    assert low <= metric.reduce(rows.sum(axis=0)) <= high


@pytest.mark.parametrize("name", SCORED)
def test_no_answer_or_another_kind_of_answer_is_wrong(name: str) -> None:
    target = "the cat sat on 5 mats"
    records = [Record("x", None, 0, "write", target, "0")]
    assert score(WRITE, [Answer("text", target, 1.0)], records, metrics=[name])[name] == pytest.approx(1.0)
    for bad in (None, Answer("span", target, 1.0)):
        assert score(WRITE, [bad], records, metrics=[name])[name] == 0.0


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize("target", [["B-PER"], {"texts": []}, {"starts": [1]}])
def test_a_target_without_text_is_refused(name: str, target: Any) -> None:
    with pytest.raises(DataError, match="needs a text as target"):
        of(name, ["x"], [target])


@pytest.mark.parametrize(("name", "package"), [("rouge1", "rouge-score"), ("bleu", "sacrebleu")])
def test_a_missing_library_is_named_with_the_remedy(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module
    for cached in (text_metrics._optional_module, text_metrics._rouge_scorer, text_metrics._bleu):
        cached.cache_clear()

    def missing(module: str) -> Any:
        if module.startswith(("rouge_score", "sacrebleu")):
            raise ImportError(module)
        return real(module)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match=rf"needs {package}; install it with .*dynamorouter\[text\]"):
        check_metrics(
            [Task(name="write", head="causal_lm", columns=WRITE.columns, labels=(), metrics=("text_match", name))]
        )
