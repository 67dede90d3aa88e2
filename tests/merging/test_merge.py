"""Merging whole experts: what is refused, what the output policies keep, and that the errors reported are true."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamorouter.errors import ConfigError, MergeError
from dynamorouter.merging.deltas import LayerDeltas, LowRank
from dynamorouter.merging.diagnose import diagnose
from dynamorouter.merging.merge import MergeResult, check_experts, merge_experts, merge_factors
from dynamorouter.merging.registry import merges
from dynamorouter.merging.truncate import Output, singular, to_factors, truncated
from dynamorouter.model.heads.base import build_head
from dynamorouter.model.lora.config import LoraConfig
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.lora.factors import Factors
from dynamorouter.model.lora.fusion import Fusion
from support.builders import MOOD
from support.mergecases import SHAPES, Case, change, dense, make_experts, needed

HEAD = build_head(MOOD, 12)


def experts_of(ranks: dict[str, int], **options: Any) -> list[Expert]:
    made = make_experts(ranks, **options)
    return [Expert(name, MOOD, "tiny", factors, HEAD, LoraConfig(rank=ranks[name])) for name, factors in made.items()]


EXPERTS = experts_of({"one": 3, "two": 2, "three": 4})


def wanted(experts: list[Expert], layer: str) -> torch.Tensor:
    return dense({e.name: dict(e.factors) for e in experts}, layer).mean(dim=0)


@pytest.mark.parametrize("name", merges.names())
def test_order_changes_nothing_to_the_last_bit(name: str) -> None:
    experts = EXPERTS[:2] if merges.get(name).experts == 2 else EXPERTS
    data = needed(name, {e.name: dict(e.factors) for e in sorted(experts, key=lambda e: e.name)})
    weights = {e.name: 0.3 + 0.2 * i for i, e in enumerate(experts)}
    first = merge_experts(experts, method=name, weights=weights, output="rank=3", **data)
    second = merge_experts(list(reversed(experts)), method=name, weights=weights, output="rank=3", **data)
    for layer, factors in first.factors.items():
        assert torch.equal(factors.a, second.factors[layer].a) and torch.equal(factors.b, second.factors[layer].b)
    assert first.error == second.error


@pytest.mark.parametrize("method", ["linear", "ties", "svd"])
@pytest.mark.parametrize("output", ["exact", "rank=1", "rank=2", "rank=50", "energy=0.5", "energy=0.9", "energy=1"])
def test_the_reported_error_is_the_true_one(method: str, output: str) -> None:
    whole = merge_experts(EXPERTS, method="linear" if method == "svd" else method)
    result = merge_experts(EXPERTS, method=method, output=output)
    lost = total = 0.0
    for layer in SHAPES:
        full = change(whole.factors[layer])
        gone = float((change(result.factors[layer]) - full).square().sum())
        lost, total = lost + gone, total + float(full.square().sum())
        assert result.errors[layer] == pytest.approx(math.sqrt(gone) / float(full.norm()), abs=1e-6)
        assert result.factors[layer].a.shape[0] == max(1, result.ranks[layer])
        if output.startswith("rank"):
            assert result.ranks[layer] <= int(output[5:])
        if output.startswith("energy") and method != "svd":
            assert result.errors[layer] ** 2 <= 1 - float(output[7:]) + 1e-9
            best = torch.linalg.svdvals(full).square()
            kept = result.ranks[layer]
            assert float(best[: kept - 1].sum() / best.sum()) < float(output[7:])  # one fewer would not do
    assert result.error == pytest.approx(math.sqrt(lost / total), abs=1e-6)
    assert result.lora.rank == max(f.a.shape[0] for f in result.factors.values()) and result.lora.scaling == 1


@settings(max_examples=25, deadline=None)
@given(
    rank=st.integers(1, 30),
    kept=st.integers(1, 8),
    seed=st.integers(0, 99),
    form=st.sampled_from(["core", "loose", "dense"]),
)
def test_truncation_is_the_best_of_its_rank(rank: int, kept: int, seed: int, form: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    out, width = 14, 11
    left, right = (torch.randn(n, generator=generator, dtype=torch.float64) for n in ((out, rank), (rank, width)))
    delta = LowRank(left, torch.eye(rank, dtype=torch.float64), right, orthonormal=False)
    full = delta.dense()
    forms: dict[str, LowRank | torch.Tensor] = {"core": delta.reduced(), "loose": delta, "dense": full}
    best = torch.linalg.svdvals(full)
    for form_ in (to_factors(forms[form], Output("rank", kept)), to_factors(truncated(forms[form], kept), Output())):
        assert form_.lost == pytest.approx(float(best[kept:].square().sum()), rel=1e-9, abs=1e-9)
        got = change(form_.factors)
        assert float((got - full).norm()) == pytest.approx(float(best[kept:].norm()), rel=1e-4, abs=1e-5)
    left_, values, right_ = singular(forms[form])
    present = int((values > 0).sum())
    assert present == min(rank, out, width)
    torch.testing.assert_close(values[:present], best[:present])
    torch.testing.assert_close(left_ @ torch.diag(values) @ right_, full)


def test_a_merge_of_nothing_is_nothing() -> None:
    zero = {k: Factors(f.a, 0 * f.b, f.scaling) for k, f in EXPERTS[0].factors.items()}
    silent = [dataclasses.replace(EXPERTS[0], factors=zero), dataclasses.replace(EXPERTS[1], factors=zero)]
    for name in merges.names():
        data = needed(name, {e.name: dict(e.factors) for e in sorted(silent, key=lambda e: e.name)})
        result = merge_experts(silent, method=name, **data)
        assert all(float(change(f).abs().max()) < 1e-12 for f in result.factors.values()), name
        assert result.error == 0 and any("zero" in note for note in result.notes)


def test_full_rank_and_unlike_depths_are_noted() -> None:
    assert any("full rank" in note for note in merge_experts(EXPERTS, method="ties", density=0.9).notes)
    deeper = [dataclasses.replace(EXPERTS[1], lora=LoraConfig(trunk_depth=2)), EXPERTS[0]]
    result = merge_experts(deeper)
    assert result.lora.trunk_depth == 0 and any("begin at blocks [0, 2]" in note for note in result.notes)


def test_a_card_is_plain_json() -> None:
    import json

    card = merge_experts(EXPERTS, method="ties", density=0.3, weights=[1, 2, 3]).card()
    assert json.loads(json.dumps(card)) == card
    assert card["options"] == {"density": 0.3} and card["weights"] == {"one": 1.0, "two": 2.0, "three": 3.0}


def refused(error: type[Exception], said: str, experts: list[Expert], **options: Any) -> None:
    with pytest.raises(error, match=said):
        merge_experts(experts, **options)


def test_what_cannot_be_right_is_refused() -> None:
    one, two, _ = EXPERTS
    refused(MergeError, "nothing to merge", [])
    refused(MergeError, "'one' is given more than once", [one, one])
    refused(MergeError, "different base models", [one, dataclasses.replace(two, base="other")])
    fused = dataclasses.replace(two, fusion=Fusion(("one",), {}, HEAD))
    refused(MergeError, "fusion", [one, fused])
    refused(MergeError, "takes 2 experts", EXPERTS, method="slerp")
    shape = {k: Factors(f.a[:, :-1], f.b, 1.0) for k, f in two.factors.items()}
    refused(MergeError, "not of one shape", [one, dataclasses.replace(two, factors=shape)])
    broken = {k: Factors(f.a * math.nan, f.b, 1.0) for k, f in two.factors.items()}
    refused(MergeError, "'two' holds NaN", [one, dataclasses.replace(two, factors=broken)])
    with pytest.raises(MergeError):
        check_experts([one, fused])


def test_wrong_settings_are_refused_with_the_remedy() -> None:
    refused(ConfigError, "unknown merge method 'tie'.*did you mean 'ties'", EXPERTS, method="tie")
    refused(ConfigError, "no option 'densty'.*did you mean 'density'.*density=0.2", EXPERTS, method="ties", densty=1)
    refused(ConfigError, "needs grams.*--data.*linear", EXPERTS, method="regmean")
    refused(ConfigError, "3 experts, but 2 weights", EXPERTS, weights=[1, 2])
    refused(ConfigError, "weights are given for", EXPERTS, weights={"one": 1, "four": 2})
    refused(ConfigError, "finite", EXPERTS, weights=[1, 2, math.inf])
    for output in ("rank=0", "rank=1.5", "rank", "energy=0", "energy=2", "energy=x", "all", "exact=1"):
        refused(ConfigError, "'exact', 'rank=K'", EXPERTS, output=output)
    wrong: dict[str, dict[str, Any]] = {
        "ties": {"density": 0}, "dare": {"density": 1.5}, "magnitude": {"density": -1}, "breadcrumbs": {"gamma": 1},
        "della": {"density": 0.9, "epsilon": 0.3}, "knots": {"inner": "mean"}, "core_space": {"basis": "other"},
        "tsv": {"keep": 0},
    }  # fmt: skip
    for name, options in wrong.items():
        refused(ConfigError, "|".join(f"{key}" for key in options), EXPERTS, method=name, **options)
    refused(ConfigError, "elect", EXPERTS, method="ties", elect="weight")
    refused(ConfigError, "trim", EXPERTS, method="ties", trim="all")
    refused(MergeError, "no grams of expert 'one'", EXPERTS, method="regmean", grams={"two": {}})
    refused(ConfigError, "negative", EXPERTS, method="lego", weights=[1, -1, 1])
    refused(MergeError, "slerp's weights", EXPERTS[:2], method="slerp", weights=[0, 0])


def test_slerp_goes_from_one_end_to_the_other() -> None:
    two = EXPERTS[:2]
    for weights, index in (([1, 0], 0), ([0, 1], 1)):
        result = merge_experts(two, method="slerp", weights=weights)
        for layer, factors in result.factors.items():
            want = change(two[index].factors[layer])
            torch.testing.assert_close(change(factors), want, rtol=1e-5, atol=1e-5)


def test_the_span_is_every_experts_change() -> None:
    layer = LayerDeltas("block.0.up", [e.name for e in EXPERTS], [e.factors["block.0.up"] for e in EXPERTS])
    span = layer.span
    for e in range(3):
        torch.testing.assert_close(span.left @ span.cores[e] @ span.right, layer.dense(e))
    torch.testing.assert_close(span.left.T @ span.left, torch.eye(span.left.shape[1], dtype=torch.float64))


def test_rslora_and_alphas_are_folded_in() -> None:
    a, b = torch.randn(4, 12), torch.randn(9, 4)
    for lora in (LoraConfig(rank=4, alpha=8), LoraConfig(rank=4, alpha=8, rslora=True)):
        expert = Expert("x", MOOD, "tiny", {"q": Factors(a, b, lora.scaling)}, HEAD, lora)
        merged: MergeResult = merge_experts([expert])
        torch.testing.assert_close(
            change(merged.factors["q"]), lora.scaling * (b.double() @ a.double()), rtol=1e-5, atol=1e-5
        )


def test_the_diagnosis_agrees_with_dense_matrices() -> None:
    found = diagnose(EXPERTS, methods=["linear", "ties"])
    flat = {e.name: torch.cat([change(e.factors[k]).flatten() for k in SHAPES]) for e in EXPERTS}
    for pair in found.pairs:
        one, other = flat[pair.one], flat[pair.other]
        assert pair.cosine == pytest.approx(float(one @ other / one.norm() / other.norm()), abs=1e-9)
        assert 0 <= pair.signs <= 1 and 0 <= pair.outputs <= 1 and 0 <= pair.inputs <= 1 and 0 <= pair.angle <= 90
    assert len(found.pairs) == 3 and len(found.layers) == 3 * len(SHAPES) and len(found.forecasts) == 6
    for forecast in found.forecasts:
        merged = merge_experts(EXPERTS, method=forecast.method)
        whole = torch.cat([change(merged.factors[k]).flatten() for k in SHAPES])
        own = flat[forecast.expert]
        kept = float(whole @ own / own.square().sum())
        assert forecast.kept == pytest.approx(kept, abs=1e-5)
        assert forecast.foreign == pytest.approx(float((whole - kept * own).norm() / own.norm()), abs=1e-5)
        assert forecast.loss == pytest.approx(float((whole - own).norm() / own.norm()), abs=1e-5)


def test_the_diagnosis_tells_alike_from_orthogonal() -> None:
    one = EXPERTS[0]
    opposite = dataclasses.replace(
        one, name="zero", factors={k: Factors(f.a, f.b, -f.scaling) for k, f in one.factors.items()}
    )
    pair = diagnose([one, opposite], methods=["linear"]).pairs[0]
    assert pair.cosine == pytest.approx(-1) and pair.signs == 1 and pair.angle == pytest.approx(0, abs=1e-3)
    assert pair.outputs == pytest.approx(1) and pair.inputs == pytest.approx(1)
    eye = torch.eye(12)
    apart = [
        dataclasses.replace(e, factors={"q": Factors(eye[3 * i : 3 * i + 2], eye[:9, 3 * i : 3 * i + 2], 1.0)})
        for i, e in enumerate(EXPERTS[:2])
    ]
    pair = diagnose(apart, methods=["linear"]).pairs[0]
    assert pair.cosine == 0 and pair.outputs == 0 and pair.inputs == 0 and pair.angle == pytest.approx(90)
    with pytest.raises(ConfigError, match="needs grams"):
        diagnose(EXPERTS, methods=["regmean"])


@pytest.mark.parametrize(
    ("method", "options", "word"),
    [
        ("ties", {"density": "abc"}, "density is 'abc'"),
        ("ties", {"density": None}, "density is None"),
        ("task_arithmetic", {"scale": float("nan")}, "scale is nan"),
        ("svd", {"rank": 2.5}, "rank is 2.5"),
        ("svd", {"rank": -1}, "rank is -1"),
        ("lego", {"rank": 0}, "rank is 0"),
        ("knots", {"inner": 3}, "inner is 3"),
    ],
)
def test_values_of_options_are_looked_at(method: str, options: dict[str, Any], word: str) -> None:
    experts = make_experts({"one": 3, "two": 2})
    with pytest.raises(ConfigError, match=re.escape(word)):
        case = merges.get(method)
        case.check(options)
        merge_factors(experts, case, torch.ones(2).double(), Output(), options=options)


def test_a_merge_too_large_for_its_numbers_is_refused() -> None:
    with pytest.raises(MergeError, match="beyond 1e"):
        merge_factors(
            make_experts({"one": 3, "two": 2}), merges.get("linear"), torch.tensor([1e300, 1.0]).double(), Output()
        )


@pytest.mark.parametrize("method", ["ties", "ties_mergekit", "dare_ties", "della", "knots", "core_space"])
def test_an_expert_can_be_taken_away(method: str) -> None:
    experts = make_experts({"one": 3, "two": 3})
    both = Case(method).merge(experts, weights=[1.0, 1.0])
    less = Case(method).merge(experts, weights=[1.0, -0.99])
    assert all(float(less[layer].norm()) < 3 * float(both[layer].norm()) for layer in both)


@pytest.mark.parametrize("method", ["regmean", "fisher", "lego"])
def test_shares_of_a_mean_are_not_negative(method: str) -> None:
    with pytest.raises(ConfigError, match="must not be negative"):
        Case(method).merge(make_experts({"one": 3, "two": 3}), weights=[1.0, -0.5])
