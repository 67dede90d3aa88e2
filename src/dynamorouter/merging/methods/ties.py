"""TIES (Yadav et al., 2023): trim, elect a sign for each entry, average the entries that have it.

Implementations differ in what is trimmed together, who votes, and what the sum is divided by; each convention has a
name. All agree where every weight is one and the trim is by layer.

Letters: D in, O out, E experts.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dynamorouter.errors import ConfigError
from dynamorouter.merging.deltas import Delta, LayerDeltas, Layers
from dynamorouter.merging.methods._sparsify import Aggregate, Election, agreed, count_kept, largest
from dynamorouter.merging.registry import Plan, merge_method

BINS = 1 << 16
Trim = Literal["global", "layer"]


def global_thresholds(layers: Layers, weights: Tensor, *, trim: Trim = "global", density: float = 0.2) -> Plan:
    """Find the magnitude above which each expert's share ``density`` of all its entries in all layers lies.

    Three passes over the layers, with one of them dense at a time: the largest magnitude, a histogram, and the exact
    value within the bin that it falls into.
    """
    if trim != "global":
        return Plan()
    experts = len(layers.experts)
    top = torch.zeros(experts, dtype=torch.float64)
    entries = 0
    for deltas in layers:
        entries += deltas.shape[0] * deltas.shape[1]
        top = torch.maximum(top, torch.stack([deltas.dense(e).abs().max() for e in range(experts)]))
    counts = torch.zeros(experts, BINS, dtype=torch.long)
    for deltas in layers:
        for e in range(experts):
            counts[e] += _bins(deltas.dense(e), top[e]).bincount(minlength=BINS)
    count = count_kept(density, entries)
    above = counts.flip(1).cumsum(1).flip(1)  # entries in this bin or a higher one
    bin_of = (above >= count).sum(dim=1) - 1
    inside: list[list[Tensor]] = [[] for _ in range(experts)]
    for deltas in layers:
        for e in range(experts):
            matrix = deltas.dense(e)
            inside[e].append(matrix.abs().flatten()[_bins(matrix, top[e]) == bin_of[e]])
    thresholds_by_expert = []
    for e in range(experts):
        needed = count - (int(above[e, bin_of[e] + 1]) if bin_of[e] + 1 < BINS else 0)
        values = torch.cat(inside[e])
        thresholds_by_expert.append(values.kthvalue(values.numel() - needed + 1).values)
    thresholds = torch.stack(thresholds_by_expert)
    return Plan(options={name: {"thresholds": thresholds} for name in layers.names})


def _bins(matrix: Tensor, top: Tensor) -> Tensor:
    scaled = matrix.abs().flatten() / top.clamp_min(torch.finfo(matrix.dtype).tiny)
    return (scaled * BINS).long().clamp_max(BINS - 1)


@merge_method("ties", paper="Yadav et al., 2023", weights="ones", plain={"density": 1.0}, survey=global_thresholds)
def ties(
    deltas: LayerDeltas,
    weights: Tensor,
    *,
    density: float = 0.2,
    trim: Trim = "global",
    elect: Election = "mass",
    aggregate: Aggregate = "weighted_mean",
    scale: float = 1.0,
    thresholds: Tensor | None = None,
) -> Tensor:
    """Trim each expert to its largest entries in all layers, elect signs, average the entries that agree.

    With ``trim="global"`` the thresholds come from a survey of all layers; a single layer on its own is trimmed by
    itself.
    """
    if trim not in ("global", "layer"):
        raise ConfigError(f"trim is {trim!r}; allowed are 'global' (all layers together) and 'layer' (each by itself)")
    if thresholds is None:
        pruned = torch.stack([largest(deltas.dense(e), density) for e in range(len(deltas))])
    else:
        dense = deltas.stack()
        pruned = dense.where(dense.abs() >= thresholds[:, None, None], 0.0)
    return scale * agreed(pruned, weights, elect=elect, aggregate=aggregate)


@merge_method("ties_peft", paper="Yadav et al., 2023, as PEFT's 'ties_svd'", weights="ones", plain={"density": 1.0})
def ties_peft(deltas: LayerDeltas, weights: Tensor, *, density: float = 0.2, elect: Election = "mass") -> Tensor:
    """Trim by layer, elect without weights, divide the weighted sum by the number that agree."""
    pruned = torch.stack([largest(deltas.dense(e), density) for e in range(len(deltas))])
    return agreed(pruned, weights, elect=elect, aggregate="mean", weigh_election=False)


@merge_method("ties_mergekit", paper="Yadav et al., 2023, as mergekit's 'ties'", weights="ones", plain={"density": 1.0})
def ties_mergekit(
    deltas: LayerDeltas, weights: Tensor, *, density: float = 0.2, elect: Election = "mass", scale: float = 1.0
) -> Delta:
    """Trim by layer, elect with weights, divide the weighted sum by the weights that agree."""
    return ties(deltas, weights, density=density, trim="layer", elect=elect, scale=scale)
