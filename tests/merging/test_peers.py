"""Beside PEFT and mergekit: equal where they are right, and what they do where they are not."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from dynamorouter.merging.deltas import Layers
from dynamorouter.merging.merge import merge_factors
from dynamorouter.merging.methods._sparsify import dropped_by_rank
from dynamorouter.merging.registry import merges
from dynamorouter.merging.truncate import Output
from dynamorouter.model.lora.factors import Factors
from support.mergecases import SHAPES, Factored, apart, change, dense, make_experts


class Layered(nn.Module):
    """Linear layers of the tests' shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {key.replace(".", "_"): nn.Linear(width, out) for key, (out, width) in SHAPES.items()}
        )

    def forward(self, x: Tensor) -> Tensor:
        return x


def peft_merge(experts: Factored, kind: str, weights: Sequence[float], **options: Any) -> dict[str, Tensor]:
    """Merge with ``add_weighted_adapter`` and return the merged adapter's changes."""
    rslora = options.pop("rslora", False)
    model: Any = None
    for name, factors in experts.items():
        rank = next(iter(factors.values())).a.shape[0]
        alpha = next(iter(factors.values())).scaling * (math.sqrt(rank) if rslora else rank)
        targets = [layer.replace(".", "_") for layer in SHAPES]
        config = LoraConfig(r=rank, lora_alpha=alpha, use_rslora=rslora, target_modules=targets)  # type: ignore[arg-type]
        if model is None:
            model = get_peft_model(Layered(), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        for layer, f in factors.items():
            module = model.base_model.model.layers[layer.replace(".", "_")]
            module.lora_A[name].weight.data.copy_(f.a)
            module.lora_B[name].weight.data.copy_(f.b)
            assert module.scaling[name] == pytest.approx(f.scaling)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_weighted_adapter(list(experts), list(weights), "merged", combination_type=kind, **options)
    return {k: model.base_model.model.layers[k.replace(".", "_")].get_delta_weight("merged").double() for k in SHAPES}


def ours(
    experts: Factored, method: str, weights: Sequence[float], output: str = "exact", **options: Any
) -> dict[str, Tensor]:
    vector = torch.tensor(weights, dtype=torch.float64)
    written, _ = merge_factors(experts, merges.get(method), vector, Output.parse(output), options=options)
    return {layer: change(each.factors) for layer, each in written.items()}


EXPERTS = make_experts({"one": 3, "two": 2, "three": 4})
ALIKE = make_experts({"one": 3, "two": 3, "three": 3})
WEIGHTS = [0.7, 0.2, 1.3]
CLOSE = 1e-4  # PEFT and mergekit compute in float32


@pytest.mark.parametrize(
    ("kind", "method", "given"),
    [
        ("cat", "linear", {}),
        ("svd", "linear", {"svd_rank": 9}),
        ("svd", "svd", {}),
        ("ties_svd", "ties_peft", {"svd_rank": 9, "density": 0.4}),
        ("ties_svd", "ties_peft", {"svd_rank": 9, "density": 0.4, "majority_sign_method": "frequency"}),
        ("magnitude_prune_svd", "magnitude", {"svd_rank": 9, "density": 0.3}),
        ("dare_linear_svd", "dare", {"svd_rank": 9, "density": 1.0}),
        ("dare_ties_svd", "ties_peft", {"svd_rank": 9, "density": 1.0}),
    ],
)
def test_peft_agrees_where_it_merges_changes(kind: str, method: str, given: Mapping[str, Any]) -> None:
    known = {"density": given["density"]} if "density" in given else {}
    if given.get("majority_sign_method") == "frequency":
        known["elect"] = "count"
    theirs = peft_merge(EXPERTS, kind, WEIGHTS, **given)
    rank = {"output": f"rank={given['svd_rank']}"} if "svd_rank" in given else {}
    assert apart(ours(EXPERTS, method, WEIGHTS, **rank, **known), theirs) < CLOSE


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_peft_agrees_at_any_rank_of_the_svd(rank: int) -> None:
    assert (
        apart(ours(EXPERTS, "linear", WEIGHTS, f"rank={rank}"), peft_merge(EXPERTS, "svd", WEIGHTS, svd_rank=rank))
        < CLOSE
    )


def test_peft_linear_returns_identical_experts_as_often_as_there_are() -> None:
    """Cross terms: PEFT's ``linear`` weighs A and B by the root of the weight each, so that every B meets every A."""
    same = {name: ALIKE["one"] for name in ALIKE}
    own = {layer: dense({"one": ALIKE["one"]}, layer)[0] for layer in SHAPES}
    theirs = peft_merge(same, "linear", [1 / 3] * 3)
    assert apart(theirs, {layer: 3 * delta for layer, delta in own.items()}) < CLOSE
    assert apart(ours(same, "linear", [1 / 3] * 3), own) < 1e-6
    assert apart(ours(same, "factor_average", [1 / 3] * 3), own) < 1e-6


@pytest.mark.parametrize(
    ("kind", "given"), [("linear", {}), ("ties", {"density": 0.4}), ("magnitude_prune", {"density": 0.4})]
)
def test_peft_depends_on_how_factors_are_written(kind: str, given: Mapping[str, Any]) -> None:
    """``B R`` and ``R^-1 A`` are the same expert, and PEFT's merges of factors tell them apart."""
    torch.manual_seed(0)
    turned: Factored = {}
    for name, factors in ALIKE.items():
        r = torch.randn(3, 3) + 2 * torch.eye(3)
        turned[name] = {k: Factors(torch.linalg.solve(r, f.a), f.b @ r, f.scaling) for k, f in factors.items()}
    assert all(torch.allclose(dense(turned, k), dense(ALIKE, k), atol=1e-4) for k in SHAPES)
    assert apart(peft_merge(turned, kind, WEIGHTS, **given), peft_merge(ALIKE, kind, WEIGHTS, **given)) > 0.1
    method = {"linear": "linear", "ties": "ties_peft", "magnitude_prune": "magnitude"}[kind]
    assert apart(ours(turned, method, WEIGHTS, **given), ours(ALIKE, method, WEIGHTS, **given)) < CLOSE


def test_peft_ties_of_factors_is_not_ties_of_changes() -> None:
    factors, changes = (
        peft_merge(ALIKE, k, [1.0] * 3, density=0.4, **m) for k, m in (("ties", {}), ("ties_svd", {"svd_rank": 9}))
    )
    assert apart(factors, changes) > 0.3
    assert apart(ours(ALIKE, "ties_peft", [1.0] * 3, "rank=9", density=0.4), changes) < CLOSE


@pytest.mark.parametrize("kind", ["svd", "cat"])
def test_peft_scales_merges_of_rslora_twice(kind: str) -> None:
    """The merged adapter has alpha = r and inherits rsLoRA's alpha / sqrt(r): it is sqrt(r) times too large."""
    rank = 9
    theirs = peft_merge(ALIKE, kind, WEIGHTS, rslora=True, **({"svd_rank": rank} if kind == "svd" else {}))
    right = ours(ALIKE, "linear", WEIGHTS)
    assert apart(theirs, {layer: math.sqrt(rank) * delta for layer, delta in right.items()}) < CLOSE
    want = {k: torch.einsum("e,eod->od", torch.tensor(WEIGHTS).double(), dense(ALIKE, k)) for k in SHAPES}
    assert apart(right, want) < 1e-6


def test_peft_refuses_unlike_ranks_that_changes_do_not_mind() -> None:
    with pytest.raises(ValueError, match="same r"):
        peft_merge(EXPERTS, "linear", WEIGHTS)
    assert ours(EXPERTS, "linear", WEIGHTS)


@pytest.fixture(scope="module")
def mergekit() -> Any:
    return pytest.importorskip("mergekit.merge_methods.registry", reason="mergekit (extra 'bench') is not installed")


def mergekit_merge(
    mergekit: Any, experts: Factored, name: str, weights: Sequence[float], **options: Any
) -> dict[str, Tensor]:
    """Merge with a method of mergekit, the base's weights being zero, so that only changes are seen."""
    from mergekit.merge_methods.base import TensorGroup

    method = mergekit.get(name)
    found = {}
    for layer in SHAPES:
        stack = dense(experts, layer)
        group = TensorGroup.from_tensors([torch.zeros_like(stack[0]), *stack], base_index=0)
        if name == "model_stock":
            found[layer] = method.merge_group(group, filter_wise=False)
            continue
        ids = [entry.id for entry in group.non_base]
        given: dict[str, Any] = {"int8_mask": False, "lambda": 1.0, "rescale": False, "normalize": False}
        given["weight"] = dict(zip(ids, weights, strict=True))
        for key, value in options.items():
            given[key] = dict.fromkeys(ids, value) if key in ("density", "gamma", "epsilon") else value
        given.setdefault("density", dict.fromkeys(ids, 1.0))
        found[layer] = method.merge_group(group, **given)
    return found


@pytest.mark.parametrize(
    ("name", "method", "theirs", "own"),
    [
        ("task_arithmetic", "task_arithmetic", {"lambda": 0.6}, {"scale": 0.6}),
        ("task_arithmetic", "linear", {}, {}),
        ("ties", "ties_mergekit", {"normalize": True, "density": 0.4}, {"density": 0.4}),
        ("breadcrumbs", "breadcrumbs", {"density": 0.5, "gamma": 0.1}, {"density": 0.5, "gamma": 0.1, "scale": 1.0}),
        ("dare_ties", "dare_ties", {"density": 1.0}, {"density": 1.0, "aggregate": "sum"}),
        ("della_linear", "della_linear", {"density": 1.0, "epsilon": 0.1}, {"density": 1.0}),
    ],
)
def test_mergekit_agrees(
    mergekit: Any, name: str, method: str, theirs: Mapping[str, Any], own: Mapping[str, Any]
) -> None:
    assert (
        apart(ours(EXPERTS, method, WEIGHTS, **own), mergekit_merge(mergekit, EXPERTS, name, WEIGHTS, **theirs)) < CLOSE
    )


def test_mergekit_model_stock_and_slerp_agree(mergekit: Any) -> None:
    from mergekit.merge_methods.slerp import slerp

    assert (
        apart(ours(EXPERTS, "model_stock", [1 / 3] * 3), mergekit_merge(mergekit, EXPERTS, "model_stock", [])) < CLOSE
    )
    two = {name: EXPERTS[name] for name in ("one", "two")}
    arc = {}
    for layer in SHAPES:
        one, other = dense(two, layer)
        arc[layer] = slerp(torch.tensor([0.3]), one[None], other[None])[0]
    assert apart(ours(two, "slerp", [0.7, 0.3]), arc) < CLOSE


def test_mergekit_della_is_biased_towards_large_entries(mergekit: Any) -> None:
    """It scales what is left by one factor; DELLA scales each entry by its own chance, so that the mean stays."""
    from mergekit.sparsify import RescaleNorm, della_magprune

    layer = Layers(EXPERTS)["block.0.up"]
    delta, draws = layer.dense(0), 3000
    torch.manual_seed(0)
    theirs = torch.stack([della_magprune(delta, 0.5, 0.4, RescaleNorm.l1) for _ in range(draws)]).mean(dim=0)
    own = torch.stack([dropped_by_rank(layer, 0, 0.5, 0.8, seed) for seed in range(draws)]).mean(dim=0)
    large = delta.abs() >= delta.abs().flatten().quantile(0.8)
    gain = {name: float((mean[large] / delta[large]).mean()) for name, mean in (("theirs", theirs), ("own", own))}
    assert gain["own"] == pytest.approx(1, abs=0.02)
    assert gain["theirs"] > 1.05


def test_full_checkpoints_in_half_precision_round_changes_away(mergekit: Any) -> None:
    """Checkpoints are subtracted; a change a hundred times smaller than the weights has few bits left in bfloat16."""
    from mergekit.merge_methods.base import TensorGroup

    torch.manual_seed(0)
    base, delta = torch.randn(64, 64), 0.01 * torch.randn(64, 64)
    group = TensorGroup.from_tensors([base.bfloat16(), (base + delta).bfloat16()], base_index=0)
    entry = group.non_base[0].id
    given = {"weight": {entry: 1.0}, "density": {entry: 1.0}, "lambda": 1.0, "normalize": False, "rescale": False}
    merged = mergekit.get("task_arithmetic").merge_group(group, int8_mask=False, **given)
    back = merged.float() - base.bfloat16().float()
    assert float((back - delta).norm() / delta.norm()) > 0.1
    factors = {"x": {"q": Factors(delta, torch.eye(64), 1.0)}}
    written, _ = merge_factors(factors, merges.get("linear"), torch.ones(1), Output())
    assert float((change(written["q"].factors) - delta.double()).norm() / delta.norm()) < 1e-6
