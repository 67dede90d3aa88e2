"""Methods that work in the experts' joint span: KnOTS, Core Space, TSV-M, Iso-C.

All of them see the experts' changes alone and not how they are written as factors; directions in which no expert
changes the layer have no part in them.

Letters: D in, O out, E experts, R rank, P and Q width of the joint span, K and L width of what of it is used.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dynamorouter.errors import ConfigError
from dynamorouter.merging.deltas import LayerDeltas, LowRank
from dynamorouter.merging.methods._sparsify import agreed, largest, share
from dynamorouter.merging.registry import merge_method

Inner = Literal["ties", "linear"]


@merge_method("knots", paper="Stoica et al., 2024", weights="ones", plain={"density": 1.0})
def knots(
    deltas: LayerDeltas, weights: Tensor, *, inner: Inner = "ties", density: float = 0.2, scale: float = 1.0
) -> LowRank:
    """Write all experts over one output basis by an SVD of them side by side, and merge what stands beside it.

    The changes side by side are ``U S [V_1 .. V_E]``; the parts ``S V_e`` are merged by TIES, or averaged.
    """
    span = deltas.span
    count, _, width = span.cores.shape
    u, s, v = torch.linalg.svd(span.cores.transpose(0, 1).flatten(1), full_matrices=False)  # (P, E*Q)
    rank = _rank(s)
    parts = (s[:rank, None] * v[:rank]).view(rank, count, width).transpose(0, 1) @ span.right  # (E, K, D)
    merged = _inner(parts, weights, inner, density)
    return LowRank(span.left @ u[:, :rank], scale * torch.eye(rank, dtype=s.dtype), merged, orthonormal=False)


@merge_method("core_space", paper="Panariello et al., 2025", weights="ones", plain={"density": 1.0})
def core_space(
    deltas: LayerDeltas,
    weights: Tensor,
    *,
    inner: Inner = "ties",
    density: float = 0.2,
    basis: Literal["balanced", "factors"] = "balanced",
    scale: float = 1.0,
) -> LowRank:
    """Write all experts as small cores between bases of all their B's and all their A's, and merge the cores.

    ``basis="factors"`` takes the bases from A and B as they are, as the paper does; ``"balanced"`` writes every
    expert in a standard way first, so that the result does not depend on how its factors share out their size.
    """
    if basis not in ("balanced", "factors"):
        raise ConfigError(f"basis is {basis!r}; allowed are 'balanced' and 'factors'")
    span = deltas.span
    if basis == "factors":
        lefts, rights = span.left.T @ torch.cat(deltas.b, dim=1), span.right @ torch.cat(deltas.a).T
    else:
        u, s, v = torch.linalg.svd(span.cores, full_matrices=False)
        root = s.sqrt()[:, None]
        lefts = (u * root).transpose(0, 1).flatten(1)  # (P, E*R)
        rights = (v.transpose(1, 2) * root).transpose(0, 1).flatten(1)  # (Q, E*R)
    near, far = _basis(lefts), _basis(rights)
    merged = _inner(near.T @ span.cores @ far, weights, inner, density)
    return LowRank(span.left @ near, scale * merged, far.T @ span.right)


@merge_method("tsv", paper="Gargiulo et al., 2025 (TSV-M)", weights="ones")
def tsv(deltas: LayerDeltas, weights: Tensor, *, keep: float | None = None, scale: float = 1.0) -> LowRank:
    """Put all experts' singular vectors side by side, make them orthogonal to each other, and add up.

    ``keep`` is the share of each expert's singular values that is kept; by default all of them, or as many as fit into
    the layer side by side. Vectors that experts share are shared out among them.
    """
    span = deltas.span
    fits = min(1.0, min(deltas.shape) / max(1, sum(deltas.ranks)))
    part = fits if keep is None else share("keep", keep)
    lefts, values, rights = [], [], []
    for core, rank, weight in zip(span.cores, deltas.ranks, weights.tolist(), strict=True):
        u, s, v = torch.linalg.svd(core, full_matrices=False)
        count = min(max(1, int(part * rank + 1e-9)), _rank(s))  # vectors of zero values would be arbitrary
        lefts.append(u[:, :count])
        values.append(weight * s[:count])
        rights.append(v[:count].T)
    near, far = _orthogonal(torch.cat(lefts, dim=1)), _orthogonal(torch.cat(rights, dim=1))
    return span.delta(scale * (near * torch.cat(values)) @ far.T)


@merge_method(
    "iso_c",
    paper="Marczak et al., 2025 (Iso-C), in the experts' span",
    weights="ones",
    laws=("order", "scaling", "gauge"),
)
def iso_c(deltas: LayerDeltas, weights: Tensor, *, scale: float = 1.0) -> LowRank:
    """Add up the experts' changes, and give all singular values of the sum their mean."""
    span = deltas.span
    u, s, v = torch.linalg.svd(deltas.weighted(weights).core, full_matrices=False)
    rank = _rank(s)
    mean = s[:rank].mean() if rank else s.new_zeros(())
    return span.delta(scale * mean * u[:, :rank] @ v[:rank])


def _inner(parts: Tensor, weights: Tensor, inner: str, density: float) -> Tensor:
    """Merge ``(E, K, L)`` entry by entry."""
    if inner == "ties":
        return agreed(torch.stack([largest(part, density) for part in parts]), weights)
    if inner == "linear":
        total = float(weights.sum())
        if total == 0:
            raise ConfigError(f"the weights {weights.tolist()} add up to zero; inner='linear' needs their mean")
        return torch.einsum("e,ekl->kl", weights.to(parts.dtype) / total, parts)
    raise ConfigError(f"inner is {inner!r}; allowed are 'ties' and 'linear'")


def _rank(values: Tensor, *, least: float = 1e-12) -> int:
    """Count singular values that are not zero in float64, given from the largest."""
    return int((values > least * values[0]).sum()) if values.numel() and values[0] > 0 else 0


def _basis(columns: Tensor) -> Tensor:
    """Return the left singular vectors of ``(P, N)`` that belong to singular values other than zero."""
    u, s, _ = torch.linalg.svd(columns, full_matrices=False)
    used: Tensor = u[:, : _rank(s)]
    return used


def _orthogonal(columns: Tensor) -> Tensor:
    """Return the orthogonal matrix nearest to ``(P, N)``, zero where the columns do not reach.

    The paper's own code keeps singular vectors of zero singular values, which are arbitrary; here they are left out.
    """
    u, s, v = torch.linalg.svd(columns, full_matrices=False)
    rank = _rank(s, least=1e-10)
    nearest: Tensor = u[:, :rank] @ v[:rank]
    return nearest
