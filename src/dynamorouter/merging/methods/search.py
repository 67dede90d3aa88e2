"""Coefficients found on data: LoRAHub and a search by groups of blocks (gradient-free), AdaMerging (entropy).

All of them add up the experts' changes; what they look for is how much of each, in the model or in each layer. The
given weights are where they begin.

Letters: E experts, G groups of blocks, L layers, N coefficients.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dynamorouter.errors import ConfigError, MergeError
from dynamorouter.merging.deltas import LayerDeltas, Layers, LowRank
from dynamorouter.merging.registry import Plan, merge_method
from dynamorouter.utils.seeding import seeded

Objective = Callable[[Mapping[str, Tensor]], float]
"""From coefficients by layer, ``(E,)`` in the order of the experts' sorted names, to a loss."""
Entropy = Callable[[Mapping[str, Tensor]], Tensor]
"""The same to a mean entropy that can be differentiated."""


def minimise(
    loss: Callable[[Tensor], float],
    start: Tensor,
    *,
    names: Sequence[str],
    budget: int,
    step: float,
    bound: float,
    seed: int,
) -> tuple[Tensor, float, float]:
    """Search by a (1+1) evolution strategy whose steps grow after a success and shrink after a failure.

    Each coefficient's steps are drawn from a generator of its own name, so that their order changes nothing.

    Returns:
        The best point ``(N,)``, its loss, and the loss of the start.
    """
    if budget < 1:
        raise ConfigError(f"budget is {budget}; it is the number of evaluations, from 1")
    generators = [seeded(seed, "search", name) for name in names]
    best, best_loss = start.clone(), loss(start)
    if not math.isfinite(best_loss):
        raise MergeError(
            f"the objective is {best_loss} at the start; the merge of equal weights has to have a finite loss"
        )
    start_loss = best_loss
    for _ in range(budget - 1):
        noise = torch.stack([torch.randn((), generator=g, dtype=start.dtype) for g in generators])
        candidate = (best + step * noise).clamp(-bound, bound)
        candidate_loss = loss(candidate)
        if candidate_loss <= best_loss:
            best, best_loss, step = candidate, candidate_loss, step * 1.5
        else:
            step *= 1.5**-0.25
    return best, best_loss, start_loss


def whole_model(
    layers: Layers,
    weights: Tensor,
    *,
    objective: Objective | None = None,
    budget: int = 40,
    step: float = 0.2,
    bound: float = 1.5,
    l1: float = 0.05,
    seed: int = 0,
) -> Plan:
    """Search one coefficient for each expert."""
    assert objective is not None

    def loss(point: Tensor) -> float:
        return objective(dict.fromkeys(layers.names, point)) + l1 * float(point.abs().sum())

    best, best_loss, start_loss = minimise(
        loss, weights, names=layers.experts, budget=budget, step=step, bound=bound, seed=seed
    )
    listed = ", ".join(
        f"{name} {coefficient:.3f}" for name, coefficient in zip(layers.experts, best.tolist(), strict=True)
    )
    return Plan(
        weights=dict.fromkeys(layers.names, best),
        notes=(f"coefficients {listed}; objective {start_loss:.4f} -> {best_loss:.4f} in {budget} evaluations",),
    )


@merge_method(
    "lorahub", paper="Huang et al., 2023 (LoRAHub)", needs="objective", laws=("order", "gauge"), survey=whole_model
)
def lorahub(deltas: LayerDeltas, weights: Tensor) -> LowRank:
    """Search one coefficient for each expert on a few labelled rows, without gradients, and add up the changes.

    The paper mixes A and B element by element, which brings in cross terms; here the changes themselves are mixed.
    """
    return deltas.weighted(weights)


def by_groups(
    layers: Layers,
    weights: Tensor,
    *,
    objective: Objective | None = None,
    groups: int = 4,
    budget: int = 100,
    step: float = 0.2,
    bound: float = 1.5,
    seed: int = 0,
) -> Plan:
    """Search a coefficient for each expert in each group of neighbouring blocks."""
    assert objective is not None
    if groups < 1:
        raise ConfigError(f"groups is {groups}; it is the number of groups of neighbouring blocks, from 1")
    group_of = grouped(layers.names, groups)
    count = max(group_of.values()) + 1
    names = [f"{name}/{group}" for group in range(count) for name in layers.experts]

    def by_layer(point: Tensor) -> dict[str, Tensor]:
        table = point.view(count, len(layers.experts))  # (G, E)
        return {layer: table[group] for layer, group in group_of.items()}

    best, best_loss, start_loss = minimise(
        lambda point: objective(by_layer(point)),
        weights.repeat(count),
        names=names,
        budget=budget,
        step=step,
        bound=bound,
        seed=seed,
    )
    return Plan(
        weights=by_layer(best),
        notes=(f"{count} groups of blocks; objective {start_loss:.4f} -> {best_loss:.4f} in {budget} evaluations",),
    )


@merge_method(
    "layerwise",
    paper="none: LoRAHub's search, by groups of blocks",
    needs="objective",
    laws=("order", "gauge"),
    survey=by_groups,
)
def layerwise(deltas: LayerDeltas, weights: Tensor) -> LowRank:
    """Search a coefficient for each expert in each group of neighbouring blocks, without gradients, and add up."""
    return deltas.weighted(weights)


def by_entropy(
    layers: Layers,
    weights: Tensor,
    *,
    entropy: Entropy | None = None,
    start: float = 0.3,
    steps: int = 100,
    learning_rate: float = 0.01,
    each_layer: bool = True,
) -> Plan:
    """Lower the entropy of the answers by gradient steps (Adam) on the coefficients."""
    assert entropy is not None
    if steps < 1:
        raise ConfigError(f"steps is {steps}; it must be at least 1")
    rows = len(layers) if each_layer else 1
    table = (start * weights).repeat(rows, 1).requires_grad_()  # (L, E) or (1, E)
    optimizer = torch.optim.Adam([table], lr=learning_rate)
    entropies: list[float] = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = entropy({layer: table[i if each_layer else 0] for i, layer in enumerate(layers.names)})
        if not bool(value.isfinite()):
            raise MergeError(
                f"the entropy is {float(value.detach())} after {len(entropies)} steps; "
                f"lower learning_rate ({learning_rate})"
            )
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        entropies.append(float(value.detach()))
    coefficients = table.detach()
    span = max(1, steps // 10)
    means = ", ".join(
        f"{name} {value:.3f}" for name, value in zip(layers.experts, coefficients.mean(0).tolist(), strict=True)
    )
    return Plan(
        weights={layer: coefficients[i if each_layer else 0] for i, layer in enumerate(layers.names)},
        notes=(
            f"mean coefficients {means}; entropy {sum(entropies[:span]) / span:.4f} -> "
            f"{sum(entropies[-span:]) / span:.4f} in {steps} steps",
        ),
    )


@merge_method(
    "adamerging",
    paper="Yang et al., 2024 (AdaMerging)",
    weights="ones",
    needs="entropy",
    laws=("order", "gauge"),
    survey=by_entropy,
)
def adamerging(deltas: LayerDeltas, weights: Tensor) -> LowRank:
    """Learn a coefficient for each expert in each layer that makes the answers to unlabelled rows certain.

    The paper takes 500 steps of rate 0.001 from 0.3; the default here is 100 of rate 0.01.
    """
    return deltas.weighted(weights)


def grouped(layers: Sequence[str], groups: int) -> dict[str, int]:
    """Put layers into so many groups of neighbouring blocks, fewer where there are fewer blocks."""
    blocks = {layer: tuple(map(int, re.findall(r"\d+", layer)))[:1] for layer in layers}
    order = sorted(set(blocks.values()))
    count = min(groups, len(order))
    group_of = {block: i * count // len(order) for i, block in enumerate(order)}
    return {layer: group_of[block] for layer, block in blocks.items()}
