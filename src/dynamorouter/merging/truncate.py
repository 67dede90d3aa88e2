"""From a merged change to LoRA factors: exact, of a given rank, or keeping a share of the energy.

Letters: D in, O out, K kept rank.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dynamorouter.errors import ConfigError, MergeError
from dynamorouter.merging.deltas import Delta, LowRank
from dynamorouter.model.lora.factors import Factors

_POLICY = re.compile(r"(?P<kind>exact|rank|energy)(=(?P<value>[0-9.eE+-]+))?")


@dataclass(frozen=True, slots=True)
class Output:
    """How much of a merged change is kept.

    Attributes:
        kind: ``exact`` keeps every singular value that is not zero in float64, ``rank`` the largest, ``energy`` as
            many as hold a share of the squared norm.
        value: the rank, or the share; unused by ``exact``.
    """

    kind: Literal["exact", "rank", "energy"] = "exact"
    value: float = 0.0

    @staticmethod
    def parse(text: str) -> Output:
        """Read ``exact``, ``rank=K`` or ``energy=P``.

        Raises:
            ConfigError: it is none of these, K is no whole number from 1, or P is not in (0, 1].
        """
        match = _POLICY.fullmatch(text.strip())
        try:
            value = float(match["value"]) if match and match["value"] else None
        except ValueError:
            value, match = None, None
        kind = match["kind"] if match else ""
        if kind == "exact" and value is None:
            return Output()
        if kind == "rank" and value is not None and value >= 1 and value.is_integer():
            return Output("rank", value)
        if kind == "energy" and value is not None and 0 < value <= 1:
            return Output("energy", value)
        raise ConfigError(
            f"output {text!r} is unknown; allowed are 'exact', 'rank=K' with K from 1, and 'energy=P' with 0 < P <= 1"
        )

    def __str__(self) -> str:
        return self.kind if self.kind == "exact" else f"{self.kind}={self.value:g}"

    def keep(self, values: Tensor) -> int:
        """Return how many of the singular values, given from the largest, are kept."""
        present = int((values > 0).sum())
        if self.kind == "rank":
            return min(int(self.value), present)
        if self.kind == "energy" and present:
            share = values.square().cumsum(0) / values.square().sum()
            return min(present, int((share < self.value * (1 - 1e-12)).sum()) + 1)
        return present


@dataclass(frozen=True, slots=True)
class MergedLayer:
    """A layer's merged change as factors.

    Attributes:
        factors: float32, scaling 1, the singular values shared out evenly; rank 1 and zero for no change at all.
        rank: number of singular values kept; 0 for no change at all.
        lost: squared norm of what was left out.
        total: squared norm of the whole change.
    """

    factors: Factors
    rank: int
    lost: float
    total: float


LARGEST = 1e30
"""What a merged change may grow to, well within 32-bit numbers."""


def singular(delta: Delta) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``left (O, K)``, singular values from the largest and ``right (K, D)`` of a change.

    Values that are zero in float64 are set to zero. A dense change is reduced over its smaller side, whose
    eigenvectors are orthonormal to the last digit, so that what is kept is exact.
    """
    if isinstance(delta, LowRank):
        reduced = delta.reduced()
        u, values, v = torch.linalg.svd(reduced.core, full_matrices=False)
        left, right = reduced.left @ u, v @ reduced.right
    else:
        wide = delta.shape[0] <= delta.shape[1]
        matrix = delta if wide else delta.T
        _, vectors = torch.linalg.eigh(matrix @ matrix.T)
        rows = vectors.T @ matrix
        values, order = rows.norm(dim=1).sort(descending=True)
        near = vectors[:, order]
        far = rows[order] / values.clamp_min(torch.finfo(values.dtype).tiny)[:, None]
        left, right = (near, far) if wide else (far.T, near.T)
    least = torch.finfo(values.dtype).eps * max(left.shape[0], right.shape[1])
    top = values[0] if values.numel() else torch.zeros(())
    return left, values.where(values > least * top, 0.0), right


def to_factors(delta: Delta, output: Output) -> MergedLayer:
    """Make factors of a change, keeping what the policy says.

    Raises:
        MergeError: its numbers are too large for 32 bits, or none.
    """
    parts = (delta.left, delta.core, delta.right) if isinstance(delta, LowRank) else (delta,)
    if any(part.numel() and not float(part.abs().max()) < LARGEST for part in parts):
        raise MergeError(
            f"a merged change holds numbers beyond {LARGEST:g}, or none at all; lower the weights or the scale"
        )
    left, values, right = singular(delta)
    rank = output.keep(values)
    lost_before = delta.lost if isinstance(delta, LowRank) else 0.0
    squares = values.square()
    total = float(squares.sum()) + lost_before
    lost = float(squares[rank:].sum()) + lost_before
    if rank == 0:
        a, b = torch.zeros(1, right.shape[1]), torch.zeros(left.shape[0], 1)
    else:
        root = values[:rank].sqrt()
        a, b = (root[:, None] * right[:rank]).float(), (left[:, :rank] * root).float()
    return MergedLayer(Factors(a=a.contiguous(), b=b.contiguous(), scaling=1.0), rank, lost, total)


def truncated(delta: Delta, rank: int) -> LowRank:
    """Return the nearest change of a given rank; what it leaves out is kept in ``lost``.

    Raises:
        ConfigError: the rank is below 1.
    """
    if rank < 1:
        raise ConfigError(f"rank is {rank}; keep at least 1")
    left, values, right = singular(delta)
    lost_before = delta.lost if isinstance(delta, LowRank) else 0.0
    kept_rank = Output("rank", rank).keep(values)
    lost = float(values[kept_rank:].square().sum()) + lost_before
    return LowRank(left[:, :kept_rank], torch.diag(values[:kept_rank]), right[:kept_rank], lost=lost)
