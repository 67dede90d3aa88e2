"""Paired statistics against scipy, closed forms and a published example."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dynamorouter.errors import DataError
from dynamorouter.metrics.paired import Logs, holm, mcnemar, rank_arms

P = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def right(*rows: list[float]) -> np.ndarray:
    """Return the numbers of accuracy, one row of answers for each seed, as ``(S, N, 2)``."""
    values = np.array(rows, dtype=float)
    return np.stack([values, np.ones_like(values)], axis=-1)


def logs(resamples: int = 2000, permutations: int = 4000, seed: int = 0, **arms: np.ndarray) -> Logs:
    """Return logs of arms on one task."""
    return Logs(
        {arm: {"t": numbers} for arm, numbers in arms.items()}, {"t": "accuracy"}, resamples, permutations, seed=seed
    )


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.2]) == [0.2]


@given(P)
def test_holm_is_between_no_correction_and_bonferroni_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= a <= min(1.0, len(p_values) * p) + 1e-12 for p, a in zip(p_values, adjusted, strict=True))
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 20))
def test_mcnemar_is_the_binomial_test(only_first: int, only_second: int, both: int) -> None:
    first = np.array([True] * only_first + [False] * only_second + [True] * both, dtype=bool)
    second = np.array([False] * only_first + [True] * only_second + [True] * both, dtype=bool)
    differing = only_first + only_second
    expected = stats.binomtest(only_first, differing, 0.5).pvalue if differing else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, abs=1e-9)


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    inside, trials = 0, 300
    for trial in range(trials):
        drawn = logs(400, 1, trial, one=right(list((generator.random(150) < 0.7).astype(float))))
        interval = drawn.interval("one", "t")
        inside += interval.low <= 0.7 <= interval.high
    assert 0.91 <= inside / trials <= 0.98


def test_bootstrap_of_a_share_has_the_binomial_spread() -> None:
    answers = right([1.0] * 70 + [0.0] * 30)
    interval = logs(20000, one=answers).interval("one", "t")
    spread = math.sqrt(0.7 * 0.3 / 100)
    assert interval.value == pytest.approx(0.7)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * spread, rel=0.06)


def test_paired_difference_is_tighter_than_two_intervals_and_zero_for_the_same_answers() -> None:
    generator = np.random.default_rng(1)
    one = (generator.random(200) < 0.6).astype(float)
    other = one.copy()
    other[:6] = 1 - other[:6]
    found = logs(one=right(list(one)), other=right(list(other)), same=right(list(one)))
    paired = found.difference("one", "other", "t")
    single = found.interval("one", "t")
    assert paired.high - paired.low < 0.5 * (single.high - single.low)
    nothing = found.difference("one", "same", "t")
    assert (nothing.value, nothing.low, nothing.high) == (0.0, 0.0, 0.0)
    assert found.p_value("one", "same", "t") == 1.0


def test_exchange_test_agrees_with_the_sign_test_and_with_scipy() -> None:
    one = [1.0] * 14 + [0.0] * 3 + [1.0] * 40
    other = [0.0] * 14 + [1.0] * 3 + [1.0] * 40
    found = logs(permutations=40000, one=right(one), other=right(other))
    assert found.p_value("one", "other", "t") == pytest.approx(stats.binomtest(14, 17, 0.5).pvalue, abs=0.003)

    generator = np.random.default_rng(2)
    first, second = generator.random(60), generator.random(60) * 0.9
    scores = logs(permutations=20000, one=right(list(first)), other=right(list(second)))
    expected = stats.permutation_test(
        (first, second),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20000,
        rng=0,
    ).pvalue
    assert scores.p_value("one", "other", "t") == pytest.approx(expected, abs=0.015)


def test_exchange_test_rejects_as_often_as_its_level_where_nothing_differs() -> None:
    generator = np.random.default_rng(3)
    rejected = 0
    for trial in range(300):
        one, other = (generator.random((1, 80)) < 0.5).astype(float), (generator.random((1, 80)) < 0.5).astype(float)
        found = logs(1, 300, trial, one=right(*one), other=right(*other))
        rejected += found.p_value("one", "other", "t") <= 0.05
    assert rejected / 300 <= 0.085


def test_seeds_count_as_draws_too() -> None:
    same = logs(one=right([1.0] * 60 + [0.0] * 40, [1.0] * 60 + [0.0] * 40)).interval("one", "t")
    apart = logs(one=right([1.0] * 90 + [0.0] * 10, [1.0] * 30 + [0.0] * 70)).interval("one", "t")
    assert same.value == apart.value == pytest.approx(0.6)
    assert apart.high - apart.low > 2 * (same.high - same.low)


def test_mean_over_tasks_weighs_tasks_alike() -> None:
    numbers = {"one": {"short": right([1.0] * 10), "long": right([0.0] * 1000)}}
    found = Logs(numbers, {"short": "accuracy", "long": "accuracy"}, 100, 10)
    assert found.mean("one") == 0.5 and found.interval("one").value == 0.5
    assert found.complete("one")


def test_metrics_that_are_no_means_are_resampled_as_what_they_are() -> None:
    counts = np.array([[[1.0, 2.0, 1.0], [0.0, 1.0, 2.0], [2.0, 2.0, 2.0]]])  # right, answered, gold
    found = Logs({"one": {"t": counts}}, {"t": "entity_f1"}, 500, 10)
    assert found.score("one", "t") == pytest.approx(2 * 3 / (5 + 5))
    assert 0.0 <= found.interval("one", "t").low <= 0.6 <= found.interval("one", "t").high <= 1.0


RANKS = {  # of four classifiers on fourteen data sets (Demsar, 2006, table 6)
    "C4.5": [4, 1, 4, 4, 4, 1, 3, 2.5, 4, 2.5, 4, 3, 4, 3],
    "C4.5+m": [3, 2, 1, 1, 2, 2.5, 2, 2.5, 3, 2.5, 2.5, 2, 1, 1],
    "C4.5+cf": [2, 3, 2, 3, 3, 4, 4, 4, 2, 2.5, 1, 4, 2, 4],
    "C4.5+m+cf": [1, 4, 3, 2, 1, 2.5, 1, 1, 1, 2.5, 2.5, 1, 3, 2],
}
DEMSAR = {name: [-rank for rank in own] for name, own in RANKS.items()}


def test_ranks_and_critical_difference_of_a_published_example() -> None:
    ranking = rank_arms(DEMSAR)
    assert {name: round(rank, 3) for name, rank in ranking.ranks.items()} == {
        "C4.5+m+cf": 1.964,
        "C4.5+m": 2.0,
        "C4.5+cf": 2.893,
        "C4.5": 3.143,
    }
    assert ranking.critical == pytest.approx(1.25, abs=0.005)  # Nemenyi's q is 2.569: 2.569 * sqrt(4 * 5 / (6 * 14))
    assert ranking.tasks == 14
    assert ranking.cliques == [["C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5"]]
    at_ninety = rank_arms(DEMSAR, level=0.9)
    assert at_ninety.critical == pytest.approx(1.12, abs=0.005)
    assert at_ninety.cliques == [["C4.5+m+cf", "C4.5+m", "C4.5+cf"], ["C4.5+cf", "C4.5"]]


def test_friedman_is_scipys_before_the_correction() -> None:
    table = list(DEMSAR.values())
    chi = stats.friedmanchisquare(*table).statistic
    expected = stats.f.sf(13 * chi / (14 * 3 - chi), 3, 39)
    assert rank_arms(DEMSAR).p_value == pytest.approx(expected)


def test_ranks_need_two_arms_and_tasks() -> None:
    with pytest.raises(DataError, match="at least two arms"):
        rank_arms({"one": [0.1, 0.2]})
    with pytest.raises(DataError, match="the same two tasks"):
        rank_arms({"one": [0.1, 0.2], "two": [0.1]})
