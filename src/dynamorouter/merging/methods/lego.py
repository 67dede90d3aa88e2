"""LoRA-LEGO (Zhao et al., 2024): an expert's rank-one units are clustered, and a new expert is built of the centres.

Letters: D in, O out, E experts, R rank, N units of all experts, K clusters.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from dynamorouter.errors import ConfigError
from dynamorouter.merging.deltas import LayerDeltas, LowRank
from dynamorouter.merging.registry import check_shares, merge_method
from dynamorouter.utils.quiet import without_warning
from dynamorouter.utils.seeding import seeded


@merge_method(
    "lego", paper="Zhao et al., 2024 (LoRA-LEGO)", weights="ones", laws=("one", "identical", "order", "scaling")
)
def lego(
    deltas: LayerDeltas,
    weights: Tensor,
    *,
    rank: int | None = None,
    rescale: bool = True,
    scale: float = 1.0,
    seed: int = 0,
) -> LowRank:
    """Cluster the rows of A, each with its column of B, and build an expert of the clusters' centres.

    Args:
        deltas: of one layer.
        weights: how much an expert's units weigh in a centre.
        rank: number of clusters; the largest rank of the experts by default.
        rescale: give each centre the mean length of its units, and the result the factor sqrt(R / K), as the paper
            does.
        scale: factor on the result.
        seed: of the first centres.
    """
    check_shares("lego", weights)
    if rank is not None and rank < 1:
        raise ConfigError(f"rank is {rank}; it is the number of clusters, from 1")
    width = deltas.shape[1]
    roots = [math.sqrt(abs(scaling)) for scaling in deltas.scalings]
    signs = [math.copysign(root, scaling) for root, scaling in zip(roots, deltas.scalings, strict=True)]
    experts = zip(deltas.plain_a, deltas.plain_b, roots, signs, strict=True)
    units = torch.cat([torch.cat((root * a, (sign * b).T), dim=1) for a, b, root, sign in experts])  # (N, D + O)
    mass = weights.repeat_interleave(torch.tensor(deltas.ranks))
    used = (mass > 0) & (units.norm(dim=1) > 0)
    if not used.any():
        return deltas.weighted(torch.zeros_like(weights))
    units, mass = units[used], mass[used]
    order = torch.from_numpy(np.lexsort(units.T[:4].numpy()))  # the same for any order of the experts
    units, mass = units[order], mass[order]
    largest = max(deltas.ranks)  # R
    count = min(largest if rank is None else rank, units.shape[0])
    labels = _clusters(units, mass, count, seed, deltas.layer)
    centres = []
    for cluster in range(count):
        members, weight = units[labels == cluster], mass[labels == cluster]
        if not len(members):
            continue
        centre = (weight[:, None] * members).sum(dim=0) / weight.sum()
        if rescale and float(centre.norm()) > 0:
            centre = centre * (weight @ members.norm(dim=1)) / weight.sum() / centre.norm()
        centres.append(centre)
    stacked = torch.stack(centres)
    factor = math.sqrt(largest / count) if rescale else 1.0
    core = scale * factor * torch.eye(len(stacked), dtype=stacked.dtype)
    return LowRank(stacked[:, width:].T, core, stacked[:, :width], orthonormal=False)


def _clusters(units: Tensor, mass: Tensor, count: int, seed: int, layer: str) -> Tensor:
    """Return the cluster of each unit, ``(N,)``."""
    if count == len(units):
        return torch.arange(count)
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    state = int(torch.randint(2**31, (), generator=seeded(seed, "merge", layer)))
    with without_warning(ConvergenceWarning, "Number of distinct clusters"):  # some clusters then stay empty
        kmeans = KMeans(count, n_init=4, random_state=state).fit(units.numpy(), sample_weight=mass.numpy())
    return torch.from_numpy(kmeans.labels_).long()
