"""Several experts in, one out: what can be merged, in which order, and what was lost.

result = merge_experts([sst2, ag_news], method="ties", output="rank=16")
result.factors, result.error, result.notes
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dynamorouter.errors import ConfigError, MergeError, one_of
from dynamorouter.merging.deltas import Layers
from dynamorouter.merging.registry import Method, merges
from dynamorouter.merging.truncate import MergedLayer, Output, to_factors
from dynamorouter.model.lora.config import LoraConfig
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.lora.factors import Factors


@dataclass(frozen=True, slots=True)
class MergeResult:
    """One expert's factors made of several.

    Attributes:
        method: name of the method.
        sources: names of the experts.
        weights: by expert, as given or by the method's default.
        base: name of their base model.
        factors: by layer, float32, scaling 1.
        lora: how the factors are shaped.
        errors: by layer, what the output policy left out, as a share of the norm of what the method made.
        error: the same over all layers.
        ranks: by layer.
        output: the output policy.
        options: the method's options that were given.
        seed: of random methods.
        notes: for people.
        seconds: what it took.
    """

    method: str
    sources: tuple[str, ...]
    weights: Mapping[str, float]
    base: str
    factors: Mapping[str, Factors]
    lora: LoraConfig
    errors: Mapping[str, float]
    error: float
    ranks: Mapping[str, int]
    output: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def card(self) -> dict[str, Any]:
        """Return what a card says of the merge, as plain JSON values."""
        return {
            "method": self.method,
            "sources": list(self.sources),
            "weights": dict(self.weights),
            "output": self.output,
            "options": dict(self.options),
            "seed": self.seed,
            "error": self.error,
            "worst_layer_error": max(self.errors.values(), default=0.0),
            "rank": self.lora.rank,
            "notes": list(self.notes),
        }


def merge_experts(
    experts: Sequence[Expert],
    *,
    method: str = "linear",
    weights: Sequence[float] | Mapping[str, float] | None = None,
    output: str = "exact",
    seed: int = 0,
    **options: Any,
) -> MergeResult:
    """Merge experts of one base model.

    Args:
        experts: at least one, of different names; their order changes nothing but for the weights beside it.
        method: a registered name.
        weights: one per expert, or by name; the method's default if not given.
        output: ``exact``, ``rank=K`` or ``energy=P``.
        seed: of methods that draw random numbers; each expert's depend on its name, not on its place.
        **options: the method's own, and the data that it needs.

    Raises:
        MergeError: the experts cannot be merged rightly.
        ConfigError: the method, an option or the output policy is unknown, or the weights do not go with the experts.
    """
    chosen = merges.get(method)
    check_experts(experts, chosen)
    chosen.check(options)
    policy = Output.parse(output)
    weight_of = check_weights(experts, weights, chosen)
    ordered = sorted(experts, key=lambda expert: expert.name)  # sums come out the same to the last bit
    ordered_weights = torch.tensor([weight_of[expert.name] for expert in ordered], dtype=torch.float64)
    factors = {expert.name: expert.factors for expert in ordered}
    start = time.perf_counter()
    layers, notes = merge_factors(factors, chosen, ordered_weights, policy, seed=seed, options=options)
    seconds = time.perf_counter() - start
    depths = {expert.lora.trunk_depth for expert in experts}
    if len(depths) > 1:
        notes = (
            *notes,
            f"the experts begin at blocks {sorted(depths)}; the merge begins at block {min(depths)}, and "
            "inputs leave a trunk that is shared with the router there",
        )
    plain_options = {key: value for key, value in options.items() if isinstance(value, str | int | float | bool)}
    return _result(layers, chosen, experts, weight_of, policy, plain_options, seed, notes, seconds)


def merge_factors(
    experts: Mapping[str, Mapping[str, Factors]],
    method: Method,
    weights: Tensor,
    output: Output,
    *,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> tuple[dict[str, MergedLayer], tuple[str, ...]]:
    """Merge factors by name of expert and layer, one layer at a time; return the merged layers by name, and notes."""
    layers = Layers(experts)
    values = {**(options or {}), "seed": seed}
    plan = method.plan(layers, weights, **values)
    accepted = {key: value for key, value in values.items() if method.takes(key)}
    merged = {}
    for deltas in layers:
        layer = deltas.layer
        layer_options = {**accepted, **plan.options.get(layer, {})}
        merged[layer] = to_factors(method(deltas, plan.weights.get(layer, weights), **layer_options), output)
    return merged, plan.notes


def _result(
    layers: Mapping[str, MergedLayer],
    method: Method,
    experts: Sequence[Expert],
    weights: Mapping[str, float],
    output: Output,
    options: Mapping[str, Any],
    seed: int,
    notes: tuple[str, ...],
    seconds: float,
) -> MergeResult:
    rank = max((layer.factors.a.shape[0] for layer in layers.values()), default=1)
    lost, total = (sum(getattr(layer, name) for layer in layers.values()) for name in ("lost", "total"))
    full_rank = [
        name for name, layer in layers.items() if layer.rank >= min(layer.factors.b.shape[0], layer.factors.a.shape[1])
    ]
    if full_rank:
        notes = (
            *notes,
            f"{len(full_rank)} of {len(layers)} layers have full rank: they take as much space as the base's "
            "own; give --rank or --energy",
        )
    if not total:
        notes = (*notes, "the merged change is zero: the result answers as the base does")
    return MergeResult(
        method=method.name,
        sources=tuple(expert.name for expert in experts),
        weights=weights,
        base=experts[0].base,
        factors={name: layer.factors for name, layer in layers.items()},
        lora=LoraConfig(
            rank=rank,
            alpha=float(rank),
            dropout=0.0,
            targets=tuple(sorted(layers)),
            trunk_depth=min(expert.lora.trunk_depth for expert in experts),
        ),
        errors={name: math.sqrt(layer.lost / layer.total) if layer.total else 0.0 for name, layer in layers.items()},
        error=math.sqrt(lost / total) if total else 0.0,
        ranks={name: layer.rank for name, layer in layers.items()},
        output=str(output),
        options=options,
        seed=seed,
        notes=notes,
        seconds=seconds,
    )


def check_experts(experts: Sequence[Expert], method: Method | None = None) -> None:
    """Refuse experts that cannot be merged rightly.

    Raises:
        MergeError: there are none or too many, names repeat, they have different base models, or one answers by
            fusion.
    """
    names = [expert.name for expert in experts]
    if not names:
        raise MergeError("there is nothing to merge; give at least one expert, and two or more for a merge")
    if len(set(names)) < len(names):
        twice = one_of({repr(name) for name in names if names.count(name) > 1})
        raise MergeError(f"expert {twice} is given more than once; give each once, and a larger weight instead")
    if method is not None and method.experts and len(names) > method.experts:
        raise MergeError(
            f"merge method {method.name!r} takes {method.experts} experts, but {len(names)} are given "
            f"({', '.join(names)}); merge two, or take another method"
        )
    bases: dict[str, list[str]] = {}
    for expert in experts:
        bases.setdefault(expert.base, []).append(expert.name)
    if len(bases) > 1:
        listed = "; ".join(f"{', '.join(trained)} for {base!r}" for base, trained in bases.items())
        raise MergeError(
            f"the experts are trained for different base models ({listed}); changes to different weights cannot be "
            "added: merge those of one base, or route among them"
        )
    fused = [expert.name for expert in experts if expert.fusion is not None]
    if fused:
        raise MergeError(
            f"expert {one_of(map(repr, fused))} answers through a fusion, which weighs experts anew at every position "
            "and is no low-rank change; train it with experts.fusion off, or merge the others"
        )


def check_weights(
    experts: Sequence[Expert], weights: Sequence[float] | Mapping[str, float] | None, method: Method
) -> dict[str, float]:
    """Return a weight for each expert, in the experts' order.

    Raises:
        ConfigError: their number or names are not those of the experts, or one is no finite number.
    """
    names = [expert.name for expert in experts]
    if weights is None:
        return dict.fromkeys(names, 1.0 if method.weights == "ones" else 1 / len(names))
    if isinstance(weights, Mapping):
        if set(weights) != set(names):
            raise ConfigError(f"weights are given for {one_of(weights)}, but the experts are {one_of(names)}")
        weight_of = {name: float(weights[name]) for name in names}
    else:
        if len(weights) != len(names):
            raise ConfigError(
                f"there are {len(names)} experts, but {len(weights)} weights; give one for each, in order"
            )
        weight_of = dict(zip(names, map(float, weights), strict=True))
    not_finite = {name: value for name, value in weight_of.items() if not math.isfinite(value)}
    if not_finite:
        raise ConfigError(f"weights must be finite numbers, but are {not_finite}")
    return weight_of
