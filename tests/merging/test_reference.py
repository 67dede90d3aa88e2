"""Every method agrees with a slow dense float64 reference to 1e-6, and searches find what there is to be found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dynamorouter.merging.methods.search import grouped, minimise
from dynamorouter.merging.registry import merges
from support import mergereference as slow
from support.mergecases import SHAPES, Case, Factored, apart, make_experts, needed

CLOSE = 1e-6
NAMES = ["one", "three", "two"]
RANKS = {"one": 3, "three": 4, "two": 2}
WEIGHTS = [0.7, 0.2, 1.3]


def _random(pruned: Any, **finish: Any) -> slow.Reference:
    """Prune at random with the same numbers, then add up or elect."""

    def layer(stack: Tensor, weights: Tensor, *, layer: str, **options: float) -> Tensor:
        left = pruned(stack, layer, NAMES, **options)
        return slow.elected(left, weights, **finish) if finish else slow.total(left, weights)

    return slow.by_layer(layer)


MASS: dict[str, Any] = {"elect": "mass", "divide": "weights", "weigh": True}
COUNT: dict[str, Any] = {"elect": "count", "divide": "sum", "weigh": True}
TABLE: list[tuple[Case, slow.Reference, dict[str, Any]]] = [
    (Case("linear"), slow.by_layer(slow.total), {}),
    (Case("task_arithmetic", {"scale": 0.8}), slow.by_layer(slow.scaled), {"scale": 0.8}),
    (Case("svd"), slow.by_layer(slow.cut), {"rank": 4}),
    (Case("svd", {"rank": 2}), slow.by_layer(slow.cut), {"rank": 2}),
    (Case("model_stock"), slow.by_layer(slow.stock), {}),
    (Case("magnitude"), slow.by_layer(slow.magnitude), {}),
    (Case("breadcrumbs"), slow.by_layer(slow.breadcrumbs), {"density": 0.15, "gamma": 0.007, "scale": 0.3}),
    (
        Case("breadcrumbs", {"density": 0.4, "gamma": 0.1, "scale": 1.0}),
        slow.by_layer(slow.breadcrumbs),
        {"density": 0.4, "gamma": 0.1, "scale": 1.0},
    ),
    (Case("dare"), _random(slow.dare), {"density": 0.5}),
    (Case("dare_ties", {"density": 0.3}), _random(slow.dare, **MASS), {"density": 0.3}),
    (Case("dare_ties", {"elect": "count", "aggregate": "sum"}), _random(slow.dare, **COUNT), {"density": 0.5}),
    (Case("della"), _random(slow.della, **MASS), {"density": 0.5, "epsilon": 0.3}),
    (Case("della_linear", {"density": 0.7}), _random(slow.della), {"density": 0.7, "epsilon": 0.3}),
    (Case("ties"), slow.ties_global, {}),
    (Case("ties", {"density": 0.6}), slow.ties_global, {"density": 0.6}),
    (Case("ties_mergekit"), slow.by_layer(slow.ties_layer), {}),
    (Case("ties_mergekit", {"elect": "count"}), slow.by_layer(slow.ties_layer), {"elect": "count"}),
    (Case("ties_peft", {"density": 0.5}), slow.by_layer(slow.ties_layer),
     {"density": 0.5, "divide": "mean", "weigh": False}),
    (Case("knots"), slow.by_layer(slow.knots), {}),
    (Case("knots", {"inner": "linear"}), slow.by_layer(slow.knots), {"inner": "linear"}),
    (Case("core_space"), slow.by_layer(slow.core_space), {}),
    (Case("core_space", {"inner": "linear"}), slow.by_layer(slow.core_space), {"inner": "linear"}),
    (Case("tsv"), slow.by_layer(slow.tsv), {"ranks": list(RANKS.values())}),
    (Case("iso_c"), slow.by_layer(slow.iso_c), {}),
]  # fmt: skip
ELSEWHERE = {"factor_average", "slerp", "lego", "regmean", "fisher", "lorahub", "layerwise", "adamerging"}


@pytest.mark.parametrize(
    ("case", "reference", "options"), TABLE, ids=lambda value: str(value) if isinstance(value, Case) else ""
)
def test_agrees_with_the_dense_reference(case: Case, reference: slow.Reference, options: Mapping[str, Any]) -> None:
    experts = make_experts(RANKS)
    want = reference(slow.stacks_of(experts), torch.tensor(WEIGHTS, dtype=torch.float64), **options)
    assert apart(case.merge(experts, weights=WEIGHTS), want) < CLOSE


def test_every_method_has_a_reference() -> None:
    assert {case.method for case, _, _ in TABLE} | ELSEWHERE == set(merges.names())


def test_factor_average_and_slerp() -> None:
    experts = make_experts(RANKS)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    assert apart(Case("factor_average").merge(experts, weights=WEIGHTS), slow.factor_average(experts, weights)) < CLOSE
    two = make_experts({"one": 3, "two": 2})
    want = slow.by_layer(slow.arc)(slow.stacks_of(two), weights[:2])
    assert apart(Case("slerp").merge(two, weights=WEIGHTS[:2]), want) < CLOSE


@pytest.mark.parametrize("name", ["regmean", "fisher"])
def test_informed_methods_agree_with_the_paper_on_whole_weights(name: str) -> None:
    experts = make_experts(RANKS)
    seen = needed(name, experts)["grams" if name == "regmean" else "fisher"]
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    want = {}
    for layer, stack in slow.stacks_of(experts).items():
        own = [seen[expert][layer] for expert in experts]
        want[layer] = (
            slow.regmean(stack, weights, grams=own) if name == "regmean" else slow.fisher(stack, weights, fishers=own)
        )
    assert apart(Case(name).merge(experts, weights=WEIGHTS), want) < CLOSE


def test_regmean_is_the_least_squares_solution() -> None:
    experts = make_experts({"one": 3, "two": 2})
    torch.manual_seed(1)
    inputs = {
        name: {layer: torch.randn(60, width).double() for layer, (_, width) in SHAPES.items()} for name in experts
    }
    grams = {name: {layer: x.T @ x / 60 for layer, x in own.items()} for name, own in inputs.items()}
    got = Case("regmean").merge(experts, grams=grams, off_diagonal=1.0)
    for layer, stack in slow.stacks_of(experts).items():
        x = torch.cat([inputs[name][layer] for name in experts])
        y = torch.cat([inputs[name][layer] @ stack[e].T for e, name in enumerate(experts)])
        best = torch.linalg.lstsq(x, y).solution.T
        assert float((got[layer] - best).norm() / best.norm()) < CLOSE


def test_regmean_bears_inputs_that_no_row_has_moved() -> None:
    experts = make_experts({"one": 3, "two": 2})
    grams = needed("regmean", experts)["grams"]
    for own in grams.values():
        for gram in own.values():
            gram[0], gram[:, 0] = 0, 0
    got = Case("regmean").merge(experts, grams=grams)
    assert all(bool(change.isfinite().all()) and float(change[:, 0].abs().max()) < 1e-6 for change in got.values())


def test_core_space_of_the_paper_takes_its_bases_from_the_factors() -> None:
    experts = make_experts(RANKS)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    want = {}
    for layer, stack in slow.stacks_of(experts).items():
        b = torch.cat([e[layer].scaling * e[layer].b.double() for e in experts.values()], dim=1)
        a = torch.cat([e[layer].a.double() for e in experts.values()])
        near = torch.linalg.svd(b, full_matrices=False)[0]
        far = torch.linalg.svd(a, full_matrices=False)[2]
        cores = torch.stack([near.T @ change @ far.T for change in stack])
        want[layer] = near @ slow.within(cores, weights, "ties", 0.2) @ far
    assert apart(Case("core_space", {"basis": "factors"}).merge(experts, weights=WEIGHTS), want) < CLOSE
    assert apart(Case("core_space").merge(experts, weights=WEIGHTS), want) > 0.01


def test_lego_keeps_units_apart_where_there_is_room_and_joins_what_is_alike() -> None:
    experts = make_experts({"one": 2, "two": 2})
    apart_ = Case("lego").merge(experts, rank=4, rescale=False)
    summed = {layer: stack.sum(dim=0) for layer, stack in slow.stacks_of(experts).items()}
    assert apart(apart_, summed) < CLOSE  # as many clusters as units: side by side, which is the sum
    same = {"one": experts["one"], "two": experts["one"]}
    alone = {layer: stack[0] for layer, stack in slow.stacks_of(experts).items()}
    assert apart(Case("lego").merge(same, rescale=False), alone) < CLOSE
    assert apart(Case("lego").merge(same), alone) < CLOSE


@pytest.mark.parametrize("clusters", [1, 2, 3])
@pytest.mark.parametrize("rescale", [True, False])
def test_lego_agrees_with_the_best_of_all_clusterings(clusters: int, rescale: bool) -> None:
    experts = make_experts({"one": 2, "three": 1, "two": 2})
    weights = [0.7, 1.1, 1.3]  # a unit of little weight leaves k-means in a minimum that is not the least
    want = slow.lego(experts, torch.tensor(weights), clusters=clusters, rescale=rescale, scale=0.8)
    got = Case("lego").merge(experts, weights=weights, rank=clusters, rescale=rescale, scale=0.8)
    assert apart(got, want) < CLOSE


def _by_name(experts: Factored, point: Sequence[float]) -> dict[str, Tensor]:
    """Add up the experts' dense changes, the same coefficients in every layer."""
    return {layer: slow.total(stack, torch.tensor(point)) for layer, stack in slow.stacks_of(experts).items()}


def test_lorahub_agrees_with_the_search_written_out() -> None:
    experts = make_experts(RANKS)
    judge = needed("lorahub", experts)["objective"]

    def loss(point: list[float]) -> float:
        return float(judge(dict.fromkeys(SHAPES, torch.tensor(point).double()))) + 0.05 * sum(map(abs, point))

    found = slow.evolved(loss, [1 / 3] * 3, NAMES, budget=60, step=0.2, seed=3)
    got = Case("lorahub").merge(experts, budget=60, seed=3)
    assert apart(got, _by_name(experts, found)) < CLOSE


def test_layerwise_agrees_with_the_search_written_out() -> None:
    experts = make_experts(RANKS)
    judge = needed("layerwise", experts)["objective"]
    block = {layer: int(layer.split(".")[1]) for layer in SHAPES}

    def spread(point: Sequence[float]) -> dict[str, Tensor]:
        return {layer: torch.tensor(point[3 * i : 3 * i + 3]).double() for layer, i in block.items()}

    names = [f"{name}/{group}" for group in (0, 1) for name in NAMES]
    found = slow.evolved(lambda point: float(judge(spread(point))), [1 / 3] * 6, names, budget=80, step=0.2, seed=3)
    stacks = slow.stacks_of(experts)
    want = {layer: slow.total(stacks[layer], weights) for layer, weights in spread(found).items()}
    assert apart(Case("layerwise").merge(experts, groups=2, budget=80, seed=3), want) < CLOSE


@pytest.mark.parametrize("each_layer", [True, False])
def test_adamerging_agrees_with_adam_by_differences(each_layer: bool) -> None:
    experts = make_experts(RANKS)
    judge = needed("adamerging", experts)["entropy"]
    layers = sorted(SHAPES) if each_layer else ["all"]

    def spread(point: Sequence[float]) -> dict[str, Tensor]:
        rows = {layer: layers.index(layer) if each_layer else 0 for layer in SHAPES}
        return {layer: torch.tensor(point[3 * i : 3 * i + 3]).double() for layer, i in rows.items()}

    found = slow.adam(lambda point: float(judge(spread(point))), [0.3] * 3 * len(layers), steps=25, rate=0.01)
    stacks = slow.stacks_of(experts)
    want = {layer: slow.total(stacks[layer], weights) for layer, weights in spread(found).items()}
    assert apart(Case("adamerging").merge(experts, steps=25, each_layer=each_layer), want) < CLOSE


@pytest.mark.parametrize("name", ["lorahub", "layerwise", "adamerging"])
def test_searches_end_no_worse_than_they_begin(name: str) -> None:
    experts = make_experts({"one": 3, "two": 2})
    method = merges.get(name)
    given = needed(name, experts)
    judge = given[method.needs or ""]
    weights = torch.full((2,), 0.5, dtype=torch.float64)
    from dynamorouter.merging.deltas import Layers

    plan = method.plan(Layers(experts), weights, seed=0, **given)
    begin = float(judge(dict.fromkeys(SHAPES, weights)))
    assert float(judge(plan.weights)) < begin and plan.notes


def test_more_groups_fit_better_and_are_of_neighbouring_blocks() -> None:
    experts = make_experts({"one": 3, "two": 2})
    notes = []
    from dynamorouter.merging.deltas import Layers

    for groups in (1, 2):
        plan = merges.get("layerwise").plan(
            Layers(experts), torch.full((2,), 0.5).double(), groups=groups, budget=400, seed=0,
            **needed("layerwise", experts),
        )  # fmt: skip
        notes.append(float(plan.notes[0].split("->")[1].split()[0]))
    assert notes[1] < notes[0]
    names = [f"layer.{i}.{part}" for i in range(12) for part in ("q", "v")]
    assert [grouped(names, 4)[f"layer.{i}.q"] for i in range(12)] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert set(grouped(names, 40).values()) == set(range(12))


def test_the_search_comes_near_a_minimum_within_the_bound() -> None:
    target = torch.tensor([0.3, -0.4, 5.0], dtype=torch.float64)
    calls = []

    def loss(point: Tensor) -> float:
        calls.append(point)
        return float(((point - target) ** 2).sum())

    start = torch.full((3,), 0.3, dtype=torch.float64)
    best, value, first = minimise(loss, start, names=["a", "b", "c"], budget=300, step=0.2, bound=1.5, seed=1)
    assert len(calls) == 300 and value < first and float(best.abs().max()) <= 1.5
    torch.testing.assert_close(best, torch.tensor([0.3, -0.4, 1.5], dtype=torch.float64), atol=0.05, rtol=0)
