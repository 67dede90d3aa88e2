"""Methods that prune each expert's change before they add: magnitude, Breadcrumbs, DARE, DELLA.

Letters: D in, O out, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynamorouter.merging.deltas import LayerDeltas
from dynamorouter.merging.methods._sparsify import (
    Aggregate,
    Election,
    agreed,
    dropped,
    dropped_by_rank,
    largest,
    without_outliers,
)
from dynamorouter.merging.registry import merge_method


@merge_method("magnitude", paper="Han et al., 2015; PEFT's 'magnitude_prune_svd'", plain={"density": 1.0})
def magnitude(deltas: LayerDeltas, weights: Tensor, *, density: float = 0.5) -> Tensor:
    """Keep each expert's largest entries in the layer, and add them up, weighted."""
    return _sum([largest(deltas.dense(e), density) for e in range(len(deltas))], weights)


@merge_method(
    "breadcrumbs",
    paper="Davari and Belilovsky, 2023",
    weights="ones",
    laws=("one", "order", "scaling", "gauge"),
    plain={"density": 1.0, "gamma": 0.0, "scale": 1.0},
)
def breadcrumbs(
    deltas: LayerDeltas, weights: Tensor, *, density: float = 0.15, gamma: float = 0.007, scale: float = 0.3
) -> Tensor:
    """Drop each expert's outliers and its smallest entries, and scale the sum of what is left."""
    pruned = [without_outliers(deltas.dense(e), density, gamma) for e in range(len(deltas))]
    return scale * _sum(pruned, weights)


@merge_method("dare", paper="Yu et al., 2024", plain={"density": 1.0})
def dare(deltas: LayerDeltas, weights: Tensor, *, density: float = 0.5, seed: int = 0) -> Tensor:
    """Drop entries at random, scale the others so that the mean stays, and add up, weighted."""
    return _sum([dropped(deltas, e, density, seed) for e in range(len(deltas))], weights)


@merge_method("dare_ties", paper="Yu et al., 2024, with Yadav et al., 2023", weights="ones", plain={"density": 1.0})
def dare_ties(
    deltas: LayerDeltas,
    weights: Tensor,
    *,
    density: float = 0.5,
    elect: Election = "mass",
    aggregate: Aggregate = "weighted_mean",
    scale: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Drop entries at random as DARE, then elect signs and average those that agree as TIES."""
    pruned = torch.stack([dropped(deltas, e, density, seed) for e in range(len(deltas))])
    return scale * agreed(pruned, weights, elect=elect, aggregate=aggregate)


@merge_method("della", paper="Deep et al., 2024", weights="ones", plain={"density": 1.0})
def della(
    deltas: LayerDeltas,
    weights: Tensor,
    *,
    density: float = 0.5,
    epsilon: float = 0.3,
    elect: Election = "mass",
    aggregate: Aggregate = "weighted_mean",
    scale: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Drop entries at random, the smaller ones more often, then elect signs and average those that agree."""
    pruned = torch.stack([dropped_by_rank(deltas, e, density, epsilon, seed) for e in range(len(deltas))])
    return scale * agreed(pruned, weights, elect=elect, aggregate=aggregate)


@merge_method("della_linear", paper="Deep et al., 2024, without the election", plain={"density": 1.0})
def della_linear(
    deltas: LayerDeltas, weights: Tensor, *, density: float = 0.5, epsilon: float = 0.3, seed: int = 0
) -> Tensor:
    """Drop entries at random, the smaller ones more often, and add up, weighted."""
    return _sum([dropped_by_rank(deltas, e, density, epsilon, seed) for e in range(len(deltas))], weights)


def _sum(matrices: list[Tensor], weights: Tensor) -> Tensor:
    total = torch.zeros_like(matrices[0])
    for weight, matrix in zip(weights.tolist(), matrices, strict=True):
        total += weight * matrix
    return total
