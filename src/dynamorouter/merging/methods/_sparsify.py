"""Pruning a change entry by entry, and merging what is left with or without electing a sign.

Dense matrices are built here, one layer at a time. What is drawn depends on the seed, the layer and the expert's name.

Letters: D in, O out, E experts.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dynamorouter.errors import ConfigError
from dynamorouter.merging.deltas import LayerDeltas
from dynamorouter.utils.seeding import seeded

Election = Literal["mass", "count"]
Aggregate = Literal["mean", "weighted_mean", "sum"]


def share(name: str, value: float, *, least: float = 0.0) -> float:
    """Return a share of the entries, which must be above ``least`` and at most 1.

    Raises:
        ConfigError: it is not.
    """
    if not least < value <= 1:
        raise ConfigError(f"{name} is {value}; it is a share of the entries, above {least:g} and at most 1")
    return value


def count_kept(density: float, entries: int) -> int:
    """Return how many of so many entries a density keeps; at least one."""
    return max(1, int(share("density", density) * entries))


def largest(matrix: Tensor, density: float) -> Tensor:
    """Keep the entries of largest magnitude of ``(O, D)``, and set the others to zero."""
    count = count_kept(density, matrix.numel())
    if count >= matrix.numel():
        return matrix
    sizes = matrix.abs()
    least = sizes.flatten().kthvalue(matrix.numel() - count + 1).values
    return matrix.where(sizes >= least, 0.0)


def dropped(deltas: LayerDeltas, expert: int, density: float, seed: int) -> Tensor:
    """Drop entries of one expert's change at random and scale the others by 1/density (DARE)."""
    matrix = deltas.dense(expert)
    if share("density", density) == 1:
        return matrix
    return matrix * (_chances(deltas, expert, seed) < density) / density


def dropped_by_rank(deltas: LayerDeltas, expert: int, density: float, epsilon: float, seed: int) -> Tensor:
    """Drop entries at random, the smaller ones of a row more often, and scale each by 1/its own chance (DELLA)."""
    if share("density", density) == 1:
        return deltas.dense(expert)
    if not 0 <= epsilon < 2 * min(density, 1 - density):
        raise ConfigError(
            f"epsilon is {epsilon} with density {density}; the chances density - epsilon/2 and density + epsilon/2 "
            "must lie between 0 and 1"
        )
    matrix = deltas.dense(expert)
    order = matrix.abs().argsort(dim=1).argsort(dim=1).double()  # 0 for the smallest of a row
    chance = density + epsilon * (order / max(1, matrix.shape[1] - 1) - 0.5)
    return matrix * (_chances(deltas, expert, seed) < chance) / chance


def without_outliers(matrix: Tensor, density: float, gamma: float) -> Tensor:
    """Drop the largest ``gamma`` of the entries, keep the next ``density`` of them, drop the rest (Breadcrumbs)."""
    entries = matrix.numel()
    count = count_kept(density, entries)
    if not 0 <= gamma < 1:
        raise ConfigError(f"gamma is {gamma}; it is a share of the entries, from 0 to below 1")
    if count == entries:
        return matrix
    lowest = max(0, entries - count - int(gamma * entries))
    order = matrix.abs().flatten().argsort()
    mask = torch.zeros(entries, dtype=torch.bool)
    mask[order[lowest : lowest + count]] = True
    return matrix.where(mask.view_as(matrix), 0.0)


def agreed(
    pruned: Tensor,
    weights: Tensor,
    *,
    elect: Election = "mass",
    aggregate: Aggregate = "weighted_mean",
    weigh_election: bool = True,
) -> Tensor:
    """Elect a sign for each entry of ``(E, O, D)``, and put together the weighted entries that have it (TIES).

    Args:
        pruned: entries of each expert; zeros have no part in it.
        weights: ``(E,)``.
        elect: the sign of the sum (``mass``), or that of most entries (``count``); positive where it is even.
        aggregate: the weighted sum over those that agree, as it is (``sum``), by their number (``mean``) or by the
            sum of their weights (``weighted_mean``).
        weigh_election: whether weights have a part in the election.

    Raises:
        ConfigError: ``elect`` or ``aggregate`` is unknown.
    """
    if elect not in ("mass", "count") or aggregate not in ("mean", "weighted_mean", "sum"):
        raise ConfigError(
            f"elect is {elect!r} and aggregate {aggregate!r}; allowed are elect=mass|count and "
            "aggregate=mean|weighted_mean|sum"
        )
    column = weights.to(pruned.dtype)[:, None, None]
    weighted = pruned * column
    votes = weighted if weigh_election else pruned
    signs = votes.sign()
    poll = votes.sum(dim=0) if elect == "mass" else signs.sum(dim=0)
    agree = signs == torch.where(poll >= 0, 1.0, -1.0)
    total = weighted.where(agree, 0.0).sum(dim=0)
    if aggregate == "sum":
        return total
    # the size of the weights, since those of an expert that is to be taken away would cancel the others out
    shares = agree.to(pruned.dtype) if aggregate == "mean" else agree * column.abs()
    divisor = shares.sum(dim=0)
    return total / divisor.where(divisor != 0, 1.0)


def _chances(deltas: LayerDeltas, expert: int, seed: int) -> Tensor:
    """Draw a number in [0, 1) for each entry, ``(O, D)``."""
    generator = seeded(seed, "merge", deltas.layer, deltas.experts[expert])
    return torch.rand(deltas.shape, generator=generator, dtype=torch.float64)
