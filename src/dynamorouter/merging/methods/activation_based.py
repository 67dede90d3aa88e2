"""Methods that weigh by what was seen of the experts' own rows: RegMean and Fisher merging.

Letters: D in, O out, E experts, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dynamorouter.errors import ConfigError, MergeError, one_of
from dynamorouter.merging.deltas import LayerDeltas, LowRank
from dynamorouter.merging.registry import check_shares, merge_method

Observed = Mapping[str, Mapping[str, Tensor]]
"""By expert, then by layer."""


@merge_method("regmean", paper="Jin et al., 2023 (RegMean)", needs="grams")
def regmean(
    deltas: LayerDeltas,
    weights: Tensor,
    *,
    grams: Observed | None = None,
    off_diagonal: float = 0.9,
    scale: float = 1.0,
) -> LowRank:
    """Find the change whose outputs are nearest to every expert's own, on the inputs that each has seen.

    With G_e the second moments ``(D, D)`` of the layer's inputs on expert e's rows, and their off-diagonal entries
    shrunk by ``off_diagonal`` as in the paper, it is ``sum B_e A_e G_e (sum G_e)^-1``: the base's weights drop out, and
    the rank stays within the sum of the experts' ranks.
    """
    if not 0 <= off_diagonal <= 1:
        raise ConfigError(
            f"off_diagonal is {off_diagonal}; it shrinks entries off the diagonal, by a factor from 0 to 1"
        )
    check_shares("regmean", weights)
    moments = []
    for gram, weight in zip(_of_layer(grams, deltas, "grams"), weights.tolist(), strict=True):
        moments.append(weight * (off_diagonal * gram + (1 - off_diagonal) * torch.diag(gram.diagonal())))
    present = [e for e, rank in enumerate(deltas.ranks) if rank]
    rows = torch.cat([deltas.a[e] @ moments[e] for e in present])  # (sum of R, D)
    total = torch.stack(moments).sum(dim=0)
    factor, info = torch.linalg.cholesky_ex(total)
    # inputs that no row has ever moved have the solution of least norm
    plain = torch.cholesky_solve(rows.T, factor).T
    right = rows @ torch.linalg.pinv(total, hermitian=True) if int(info) else plain
    left = torch.cat([deltas.b[e] for e in present], dim=1)
    return LowRank(left, scale * torch.eye(left.shape[1], dtype=left.dtype), right, orthonormal=False)


@merge_method("fisher", paper="Matena and Raffel, 2022", needs="fisher")
def fisher(
    deltas: LayerDeltas, weights: Tensor, *, fisher: Observed | None = None, floor: float = 1e-6, scale: float = 1.0
) -> Tensor:
    """Average entry by entry, weighted by how much the loss of each expert's task depends on the entry.

    ``floor``, as a share of the mean, is added to every weight, so that entries on which no loss depends are averaged
    plainly.
    """
    if floor <= 0:
        raise ConfigError(f"floor is {floor}; it must be above 0, or entries without any weight have no value")
    check_shares("fisher", weights)
    total = torch.zeros(deltas.shape, dtype=torch.float64)
    share = torch.zeros_like(total)
    information = _of_layer(fisher, deltas, "fisher")
    mean = float(torch.stack([squares.mean() for squares in information]).mean())
    for e, (squares, weight) in enumerate(zip(information, weights.tolist(), strict=True)):
        mass = weight * (squares + (floor * mean if mean > 0 else 1.0))
        total += mass * deltas.dense(e)
        share += mass
    return scale * total / share.where(share != 0, 1.0)


def _of_layer(observed: Observed | None, deltas: LayerDeltas, need: str) -> list[Tensor]:
    """Return what was seen of each expert in this layer, in the experts' order, in float64.

    Raises:
        MergeError: something is missing, or is of another shape than the layer.
    """
    statistics = []
    out, width = deltas.shape
    shape = (width, width) if need == "grams" else (out, width)
    for name in deltas.experts:
        statistic = (observed or {}).get(name, {}).get(deltas.layer)
        if statistic is None:
            available = one_of(observed or {}) or "no expert"
            raise MergeError(
                f"there are no {need} of expert {name!r} for layer {deltas.layer!r} (there are some of {available}); "
                "collect them over all layers that any of the experts changes"
            )
        if tuple(statistic.shape) != shape:
            raise MergeError(
                f"the {need} of expert {name!r} for layer {deltas.layer!r} are {tuple(statistic.shape)}, but the layer "
                f"maps {width} to {out}: {shape} are needed; collect them again"
            )
        statistics.append(statistic.double())
    return statistics
