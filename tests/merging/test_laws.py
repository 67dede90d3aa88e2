"""Laws of merging: each method keeps those that it claims, and breaks those that it does not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamorouter.merging.registry import LAWS, Law, merges
from dynamorouter.testing import MergeContract
from support.mergecases import Case, apart, dense, make_experts

TOLERANCE = 1e-5
"""Of float32 factors; within float64 the methods agree with their references to 1e-6 and better."""
VARIANTS = [
    Case("ties", {"trim": "layer", "elect": "count", "aggregate": "mean"}),
    Case("dare_ties", {"elect": "count", "aggregate": "mean"}),
    Case("knots", {"inner": "linear"}),
    Case("core_space", {"inner": "linear"}),
    Case("regmean", {"off_diagonal": 0.5}),
]
CASES = [*(Case(name) for name in merges.names()), *VARIANTS]
UNCLAIMED = [
    (Case(name), law)
    for name in merges.names()
    for law in LAWS
    if law not in merges.get(name).laws and not (law == "identical" and merges.get(name).plain.get("scale"))
]  # a sum, scaled by one, of identical experts is their number times one of them


@pytest.mark.parametrize("law", MergeContract.laws())
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_method_keeps_the_contract(case: Case, law: str) -> None:
    getattr(case.contract(), law)()


@pytest.mark.parametrize(("case", "law"), UNCLAIMED, ids=str)
def test_laws_that_are_not_claimed_are_broken(case: Case, law: Law) -> None:
    assert case.contract().distance_from(law) > 0.01


@pytest.mark.parametrize("name", [name for name in merges.names() if merges.get(name).random])
def test_seeds_are_arguments(name: str) -> None:
    case, experts = Case(name), Case(name).contract().experts()
    first, again, other = (case.merge(experts, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[layer], again[layer]) for layer in first)
    if name != "lego":  # clusters may be the same from any start
        assert apart(other, first) > 1e-4


@settings(max_examples=30, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    weights=st.lists(st.floats(-2, 2), min_size=4, max_size=4),
    seed=st.integers(0, 9),
)
def test_sums_are_sums_for_any_rank_and_weight(ranks: list[int], weights: list[float], seed: int) -> None:
    experts = make_experts({f"e{i}": rank for i, rank in enumerate(ranks)}, seed=seed)
    used = weights[: len(ranks)]
    for name, factor in (("linear", 1.0), ("task_arithmetic", 0.4)):
        for layer, got in Case(name).merge(experts, weights=used).items():
            each = dense(experts, layer)
            want = factor * torch.einsum("e,eod->od", torch.tensor(used, dtype=torch.float64), each)
            assert float((got - want).norm()) <= 1e-6 * float(each.norm()) * max(1, *map(abs, used))


@pytest.mark.parametrize(
    "name", [name for name in merges.names() if merges.get(name).needs not in ("objective", "entropy")]
)
def test_every_method_has_a_coefficient(name: str) -> None:
    """Doubling the option ``scale``, or the weights where there is none, doubles the result."""
    experts = Case(name).contract().experts()
    method = merges.get(name)
    each = 1.0 if method.weights == "ones" else 1 / len(experts)
    before = Case(name).merge(experts)
    if "scale" in method.options:
        twice = Case(name).merge(experts, scale=2 * method.options["scale"])
    else:
        twice = Case(name).merge(experts, weights=[2 * each] * len(experts))
    factor = 4 if name == "factor_average" else 2  # both of its factors are averaged
    assert apart(twice, {layer: factor * change for layer, change in before.items()}) < TOLERANCE
