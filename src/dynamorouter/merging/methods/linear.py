"""Methods that are weighted sums of the experts' changes, and the naive average of factors that they are beside.

Letters: D in, O out, E experts, R rank, P and Q width of the joint span.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynamorouter.errors import MergeError
from dynamorouter.merging.deltas import LayerDeltas, LowRank
from dynamorouter.merging.registry import merge_method
from dynamorouter.merging.truncate import truncated


@merge_method(
    "factor_average",
    paper="none: what averaging adapter files does; the naive baseline",
    laws=("one", "identical", "order", "scaling"),
)
def factor_average(deltas: LayerDeltas, weights: Tensor) -> LowRank:
    """Average A and B element by element: each expert's B also meets every other's A (the baseline, not a merge).

    The scaling is shared out evenly between A and B; smaller ranks are padded with zeros.
    """
    rank, (out, width) = max(deltas.ranks), deltas.shape
    a = torch.zeros(rank, width, dtype=torch.float64)
    b = torch.zeros(out, rank, dtype=torch.float64)
    for e, weight in enumerate(weights.tolist()):
        own_rank = deltas.ranks[e]
        root = math.sqrt(abs(deltas.scalings[e]))
        a[:own_rank] += weight * root * deltas.plain_a[e]
        b[:, :own_rank] += weight * math.copysign(root, deltas.scalings[e]) * deltas.plain_b[e]
    return LowRank(b, torch.eye(rank, dtype=torch.float64), a, orthonormal=False)


@merge_method("linear", paper="Wortsman et al., 2022 (model soups), on the changes")
def linear(deltas: LayerDeltas, weights: Tensor) -> LowRank:
    """Add up the experts' changes, weighted; the mean by default."""
    return deltas.weighted(weights)


@merge_method(
    "task_arithmetic",
    paper="Ilharco et al., 2023",
    weights="ones",
    laws=("one", "order", "scaling", "gauge"),
    plain={"scale": 1.0},
)
def task_arithmetic(deltas: LayerDeltas, weights: Tensor, *, scale: float = 0.4) -> LowRank:
    """Add up the experts' changes and scale the sum; 0.4 is the paper's choice where none can be tuned."""
    return deltas.weighted(scale * weights)


@merge_method(
    "svd",
    paper="PEFT's add_weighted_adapter(combination_type='svd')",
    laws=("one", "identical", "order", "scaling", "gauge"),
)
def svd(deltas: LayerDeltas, weights: Tensor, *, rank: int | None = None) -> LowRank:
    """Add up the experts' changes, weighted, and keep the largest singular values: as many as the largest rank."""
    return truncated(deltas.weighted(weights), max(deltas.ranks) if rank is None else rank)


@merge_method("slerp", paper="Shoemake, 1985; on the changes, as two points of a sphere", experts=2)
def slerp(deltas: LayerDeltas, weights: Tensor, *, scale: float = 1.0) -> LowRank:
    """Go from the first of two experts to the second along the arc between their changes.

    The second one's share of the weights is how far. Where the changes are parallel, or one of them is zero, the arc
    is a line.
    """
    if len(deltas) == 1:
        return deltas.weighted(scale * weights)
    total = float(weights.sum())
    if (weights < 0).any() or total <= 0:
        raise MergeError(f"slerp's weights are {weights.tolist()}; they must not be negative, nor both zero")
    t = float(weights[1]) / total
    start, end = deltas.span.cores
    lengths = float(start.norm()) * float(end.norm())
    cosine = float((start * end).sum()) / lengths if lengths > 0 else 1.0
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    sine = math.sin(angle)
    shares = (1 - t, t) if sine < 1e-06 else (math.sin((1 - t) * angle) / sine, math.sin(t * angle) / sine)
    return deltas.weighted(scale * torch.tensor(shares, dtype=torch.float64))


@merge_method("model_stock", paper="Jang et al., 2024")
def model_stock(deltas: LayerDeltas, weights: Tensor) -> LowRank:
    """Shrink the mean of the experts' changes towards the base, the more the less they point the same way.

    With the mean cosine c of all pairs the factor is E c / (1 + (E - 1) c); where c is below zero it is zero.
    """
    cores = deltas.span.cores.flatten(1)
    norms = cores.norm(dim=1)
    cores, norms = cores[norms > 0], norms[norms > 0]  # experts that leave the layer alone point nowhere
    count = len(cores)
    if count < 2:
        return deltas.weighted(weights)
    cosines = (cores @ cores.T) / (norms[:, None] * norms)
    cosine = float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1)))
    shrink = count * cosine / (1 + (count - 1) * cosine) if cosine > 0 else 0.0
    return deltas.weighted(shrink * weights)
