"""Metrics against the tools that define them, and the bootstrap against what it must cover."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from dynamorouter.errors import ConfigError, DataError
from dynamorouter.metrics.base import get_metric, metrics, normalise_answer, row_statistics, score
from dynamorouter.metrics.bootstrap import bootstrap_ci, bootstrap_difference
from dynamorouter.metrics.routing import expected_calibration_error, router_metrics
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.kinds import head_kind
from dynamorouter.tasks.kinds.tagging import entities
from dynamorouter.tasks.record import Record, Target
from dynamorouter.tasks.task import Columns, Task

LABELS = ("duplicate", "not_duplicate", "other")
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
PAIRS = Task(
    name="pairs",
    head="classification",
    columns=Columns(text="a", target="y", pair="b"),
    labels=LABELS,
    metrics=("accuracy", "f1"),
)
NAMES = Task(
    name="names",
    head="tags",
    columns=Columns(text="tokens", target="tags"),
    labels=TAGS,
    metrics=("entity_f1", "entity_precision", "entity_recall"),
)
ASK = Task(
    name="ask",
    head="span",
    columns=Columns(text="question", target="answers", pair="context"),
    labels=(),
    metrics=("squad_f1", "squad_em"),
)


def scored(task: Task, said: list[Answer | None], targets: list[Target]) -> dict[str, float]:
    records = [Record("x", None, 0, task.name, target, str(i)) for i, target in enumerate(targets)]
    return score(task, said, records)


def answers(kind: str, values: list[str] | list[list[str]]) -> list[Answer | None]:
    return [Answer(kind, value, 1.0) for value in values]


@settings(deadline=None)
@given(rows=st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=30))
def test_f1_equals_scikit_learns(rows: list[tuple[str, str]]) -> None:
    gold, said = [row[0] for row in rows], [row[1] for row in rows]
    found = scored(PAIRS, answers("classification", said), list(gold))
    assert found["accuracy"] == pytest.approx(sum(a == b for a, b in rows) / len(rows))
    assert found["f1"] == pytest.approx(f1_score(gold, said, average="macro", zero_division=0))
    one = Task(
        name="pairs", head="classification", columns=PAIRS.columns, labels=LABELS, metrics=("f1",), positive="duplicate"
    )
    expected = f1_score(gold, said, labels=["duplicate"], average="macro", zero_division=0)
    assert scored(one, answers("classification", said), list(gold))["f1"] == pytest.approx(expected)


SENTENCES = st.lists(
    st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), min_size=1, max_size=9), min_size=1, max_size=5
)


@settings(max_examples=300, deadline=None)
@given(sentences=SENTENCES)
def test_entity_scores_equal_seqevals(sentences: list[list[tuple[str, str]]]) -> None:
    seqeval = pytest.importorskip("seqeval.metrics")
    gold = [[pair[0] for pair in sentence] for sentence in sentences]
    said = [[pair[1] for pair in sentence] for sentence in sentences]
    found = scored(NAMES, answers("tags", said), list(gold))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found["entity_f1"] == pytest.approx(seqeval.f1_score(gold, said))
        assert found["entity_precision"] == pytest.approx(seqeval.precision_score(gold, said))
        assert found["entity_recall"] == pytest.approx(seqeval.recall_score(gold, said))


def test_entities_follow_conlleval() -> None:
    assert entities(["B-PER", "I-PER", "O", "I-LOC"]) == {("PER", 0, 2), ("LOC", 3, 4)}
    assert entities(["B-PER", "B-PER", "I-LOC", "I-LOC"]) == {("PER", 0, 1), ("PER", 1, 2), ("LOC", 2, 4)}
    assert entities(["O"]) == entities([]) == set()


@pytest.mark.parametrize(
    ("said", "golds", "em", "f1"),
    [
        ("The Cat!", ["cat"], 1.0, 1.0),
        ("a cat sat", ["the cat"], 0.0, 2 / 3),
        ("cat", ["dog", "cat"], 1.0, 1.0),
        ("dog", ["cat"], 0.0, 0.0),
        ("in the year 1735", ["1735", "in 1735"], 0.0, 0.8),
        ("cat cat", ["cat"], 0.0, 2 / 3),
        ("the", ["an"], 1.0, 0.0),
        ("", ["cat"], 0.0, 0.0),
        ("U.S.", ["US"], 1.0, 1.0),
        ("anthem", ["them"], 0.0, 0.0),
    ],
)
def test_squad_scores_are_the_official_ones(said: str, golds: list[str], em: float, f1: float) -> None:
    found = scored(ASK, answers("span", [said]), [{"texts": golds, "starts": [0] * len(golds)}])
    assert found == pytest.approx({"squad_em": em, "squad_f1": f1})


def test_answers_are_normalised_as_officially() -> None:
    assert normalise_answer("  The  U.S. and an\tapple-pie!") == "us and applepie"


@pytest.mark.parametrize(
    ("task", "right", "target"),
    [(PAIRS, "duplicate", "duplicate"), (NAMES, ["B-PER"], ["B-PER"]), (ASK, "x", {"texts": ["x"], "starts": [0]})],
)
def test_abstaining_or_another_kind_of_answer_is_wrong(task: Task, right: str | list[str], target: Target) -> None:
    other: str = "span" if task.head != "span" else "classification"
    good = Answer(head_kind(task.head).answer_kind, right, 1.0)
    for bad in (None, Answer(other, right, 1.0)):
        assert set(scored(task, [bad], [target]).values()) == {0.0}
        mixed = scored(task, [good, bad], [target, target])
        assert mixed[task.metrics[0]] < scored(task, [good, good], [target, target])[task.metrics[0]] == 1.0
    if task is NAMES:
        assert scored(task, [good, None], [target, target])["entity_recall"] == 0.5


def test_answers_must_match_rows_and_metrics_exist() -> None:
    with pytest.raises(DataError, match="0 answers for 1 rows"):
        scored(PAIRS, [], ["duplicate"])
    with pytest.raises(DataError, match="at least one row"):
        scored(PAIRS, [], [])
    with pytest.raises(ConfigError, match=r"unknown metric 'acuracy'.*did you mean 'accuracy'"):
        get_metric("acuracy")


@pytest.mark.parametrize("name", [name for name in metrics if get_metric(name).answer_kind != "text"])
def test_every_metric_reduces_many_sums_as_it_reduces_one(name: str) -> None:
    metric = get_metric(name)
    task = {"classification": PAIRS, "tags": NAMES, "span": ASK}[str(metric.answer_kind)]
    values_by_head: dict[str, Target] = {
        "classification": "other",
        "tags": ["B-PER", "O"],
        "span": {"texts": ["x"], "starts": [0]},
    }
    value = values_by_head[metric.answer_kind]
    said = value["texts"][0] if isinstance(value, dict) else value
    records = [Record("x", None, 0, task.name, value, str(i)) for i in range(6)]
    rows = row_statistics(name, task, [Answer(metric.answer_kind, said, 1.0), None] * 3, records)
    many = np.stack([rows[:k].sum(axis=0) for k in range(7)])
    values = metric.reduce(many)
    assert values.shape == (7,)
    assert values == pytest.approx([float(metric.reduce(sums)) for sums in many])
    assert values[0] == 0.0
    assert values.max() <= 1.0
    assert bootstrap_ci(rows, metric.reduce, seed=0, resamples=20)[1] <= 1.0


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    accuracy = get_metric("accuracy")
    covered = 0
    for seed in range(200):
        rows = np.stack([(generator.random(200) < 0.7).astype(float), np.ones(200)], axis=1)
        low, high = bootstrap_ci(rows, accuracy.reduce, seed=seed, resamples=200)
        covered += low <= 0.7 <= high
    assert 178 <= covered <= 199


def test_the_bootstrap_is_seeded_and_paired() -> None:
    generator = np.random.default_rng(1)
    first = np.stack([(generator.random(300) < 0.6).astype(float), np.ones(300)], axis=1)
    second = first.copy()
    second[:6, 0] = 0.0
    reduce = get_metric("accuracy").reduce
    intervals = [bootstrap_ci(first, reduce, seed=seed, resamples=20) for seed in (3, 3, 4, 5, 6)]
    assert intervals[0] == intervals[1]
    assert len(set(map(tuple, intervals))) > 1
    same = bootstrap_difference(first, first, reduce, seed=0)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    found = bootstrap_difference(first, second, reduce, seed=0)
    assert found.value == pytest.approx(first[:6, 0].sum() / 300)
    assert 0.0 <= found.low <= found.value <= found.high < 0.05
    with pytest.raises(ValueError, match="same items"):
        bootstrap_difference(first, second[:5], reduce, seed=0)
    with pytest.raises(ValueError, match="at least one row"):
        bootstrap_ci(first[:0], reduce, seed=0)


def test_calibration_error_of_known_cases() -> None:
    right = np.array([True, False, True, False])
    assert expected_calibration_error(right, np.full(4, 0.5)) == pytest.approx(0.0)
    assert expected_calibration_error(right, np.ones(4)) == pytest.approx(0.5)
    assert expected_calibration_error(np.array([True, False]), np.array([1.0, 0.0])) == 0.0
    # The bins keep an over- and an under-confident half apart.
    assert expected_calibration_error(right, np.array([0.9, 0.3, 0.9, 0.3])) == pytest.approx(0.2)


def test_router_metrics_of_one_expert_alone_raise_no_warning() -> None:
    found = router_metrics([0, 0], [[1.0], [1.0]], ["a"])  # a warning of scikit-learn's would be an error here
    assert found["confusion"] == [[2]] and found["macro_f1"] == 1.0


def test_router_metrics_of_a_known_case() -> None:
    probabilities = [[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.6, 0.4, 0.0], [0.0, 1.0, 0.0]]
    found = router_metrics([0, 1, 1, 1], probabilities, ["a", "b", "c"])
    assert found["accuracy"] == found["majority"] == 0.75
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)
    assert found["confusion"] == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert found["tasks"] == ["a", "b", "c"]
    assert found["ece"] == pytest.approx((0.1 + 0.2 + 0.6 + 0.0) / 4)
    with pytest.raises(DataError, match="for 2 experts"):
        router_metrics([0], [[0.5, 0.4, 0.1]], ["a", "b"])
    with pytest.raises(DataError, match="at least one row"):
        router_metrics([], np.zeros((0, 2)), ["a", "b"])


OPEN = ASK.model_copy(
    update={
        "null_threshold": 0.0,
        "metrics": ("squad2_em", "squad2_f1", "squad2_has_answer_em", "squad2_has_answer_f1", "squad2_no_answer"),
    }
)


def test_squad_2_scores_are_the_official_ones() -> None:
    said: list[str | None] = ["the red house", "house", "", "a house", "", None]
    golds = [["red house"], ["red house", "old house"], ["mill"], [], [], []]
    given = [None if text is None else Answer("span", text, 1.0) for text in said]
    found = scored(OPEN, given, [{"texts": texts, "starts": [0] * len(texts)} for texts in golds])
    # HasAns: 1, 2/3, 0; NoAns: an answer where there is none is wrong, and so is one that was abstained from.
    assert found == pytest.approx(
        {
            "squad2_em": 2 / 6,
            "squad2_f1": (1 + 2 / 3 + 1) / 6,
            "squad2_has_answer_em": 1 / 3,
            "squad2_has_answer_f1": (1 + 2 / 3) / 3,
            "squad2_no_answer": 1 / 3,
        }
    )


def test_where_all_questions_have_answers_both_versions_agree() -> None:
    both = ASK.model_copy(update={"metrics": ("squad_em", "squad2_em", "squad_f1", "squad2_f1")})
    targets: list[Target] = [{"texts": ["red house"], "starts": [0]}, {"texts": ["mill"], "starts": [0]}]
    found = scored(both, answers("span", ["house", "mill"]), targets)
    assert (found["squad2_em"], found["squad2_f1"]) == pytest.approx((found["squad_em"], found["squad_f1"]))
