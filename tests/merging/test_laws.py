"""Laws of merging: each method keeps those that it claims, and breaks those that it does not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamorouter.merging.registry import LAWS, Law, merges
from dynamorouter.model.lora.factors import Factors
from support.mergecases import SHAPES, Case, Factored, apart, dense, make_experts

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


def pair(method: str) -> Factored:
    """Two or three experts, of different ranks where the method does not mind."""
    return make_experts({"one": 3, "two": 2} if merges.get(method).experts == 2 else {"one": 3, "two": 2, "three": 4})


def check(case: Case, law: Law) -> float:
    """Return how far a case is from keeping a law."""
    plain = merges.get(case.method).plain
    experts = pair(case.method)
    if law == "one":
        alone = make_experts({"one": 3})
        return apart(
            case.merge(alone, weights=[1.0], **plain), {layer: dense(alone, layer)[0] for layer in alone["one"]}
        )
    if law == "identical":
        single = make_experts({"one": 3})["one"]
        same = {name: single for name in list(experts)}
        return apart(case.merge(same, **plain), {layer: dense({"one": single}, layer)[0] for layer in single})
    before = case.merge(experts)
    if law == "order":
        return apart(case.merge(dict(reversed(experts.items()))), before)
    if law == "scaling":
        scaled = {n: {k: Factors(f.a, f.b, 3 * f.scaling) for k, f in e.items()} for n, e in experts.items()}
        return apart({k: v / 3 for k, v in case.merge(scaled).items()}, before)
    return apart(case.merge(regauged(experts)), before)


def regauged(experts: Factored) -> Factored:
    """Write every expert as B R and R^-1 A."""
    torch.manual_seed(3)
    made: Factored = {}
    for name, factors in experts.items():
        made[name] = {}
        for layer, f in factors.items():
            rank = f.a.shape[0]
            r = (torch.randn(rank, rank) + 3 * torch.eye(rank)).double()
            a, b = torch.linalg.solve(r, f.a.double()), f.b.double() @ r
            made[name][layer] = Factors(a, b, f.scaling)
    return made


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_claimed_laws_hold(case: Case, law: Law) -> None:
    if law in merges.get(case.method).laws:
        assert check(case, law) < TOLERANCE


@pytest.mark.parametrize(("case", "law"), UNCLAIMED, ids=str)
def test_laws_that_are_not_claimed_are_broken(case: Case, law: Law) -> None:
    assert check(case, law) > 0.01


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_layer_that_an_expert_leaves_alone_is_a_change_of_zero(case: Case) -> None:
    lacking = make_experts({"one": 3, "two": 2}, skip={"two": ["block.1.q"]})
    zero = {**lacking["two"], "block.1.q": Factors(torch.zeros(1, 12), torch.zeros(9, 1), 1.0)}
    explicit = {"one": lacking["one"], "two": {layer: zero[layer] for layer in SHAPES}}
    assert apart(case.merge(lacking), case.merge(explicit)) < TOLERANCE


@pytest.mark.parametrize("name", [name for name in merges.names() if merges.get(name).random])
def test_seeds_are_arguments(name: str) -> None:
    case, experts = Case(name), pair(name)
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
    experts = pair(name)
    method = merges.get(name)
    each = 1.0 if method.weights == "ones" else 1 / len(experts)
    before = Case(name).merge(experts)
    if "scale" in method.options:
        twice = Case(name).merge(experts, scale=2 * method.options["scale"])
    else:
        twice = Case(name).merge(experts, weights=[2 * each] * len(experts))
    factor = 4 if name == "factor_average" else 2  # both of its factors are averaged
    assert apart(twice, {layer: factor * change for layer, change in before.items()}) < TOLERANCE
