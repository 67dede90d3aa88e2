"""All experts, each with its own weight.

Letters: B batch, S positions, D in, O out, E experts, R rank, N some of the rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from dynamorouter.errors import BankShapeError
from dynamorouter.model.base.gate import Gate
from dynamorouter.model.lora.kernels import add_experts, inner_states

if TYPE_CHECKING:
    from dynamorouter.model.lora.bank import LoraBank


class SoftGate(Gate):
    """Every expert is used with its own weight: one factor pair of rank E*R, the weights multiplied in between.

    Args:
        weights: ``(B, E)`` for each row, or ``(B, S, E)`` for each position; differentiable.

    Raises:
        BankShapeError: the weights have another number of dimensions.
    """

    def __init__(self, weights: Tensor) -> None:
        if weights.dim() not in (2, 3):
            raise BankShapeError(f"a soft gate is (B, E) or (B, S, E), but has shape {tuple(weights.shape)}")
        self.rows = weights.shape[0]
        self.weights = weights[:, None] if weights.dim() == 2 else weights

    def select(self, rows: Tensor) -> SoftGate:
        """Return the gate of some of the rows, ``(N,)``."""
        weights = self.weights[rows]
        return SoftGate(weights[:, 0] if weights.shape[1] == 1 else weights)

    def apply(self, bank: LoraBank, x: Tensor) -> Tensor:
        """Map ``(B, S, D)`` to ``(B, S, O)``; experts that no row uses are left out.

        Raises:
            BankShapeError: the gate weighs more or fewer experts than the bank holds.
        """
        weights = self.weights  # (B, 1 or S, E)
        if weights.shape[-1] != bank.experts:
            raise BankShapeError(f"the soft gate weighs {weights.shape[-1]} experts, but the bank holds {bank.experts}")
        a: Tensor = bank.a
        b: Tensor = bank.b
        scaling = bank.scaling
        if not weights.requires_grad:
            alive = (weights != 0).flatten(0, 1).any(dim=0).nonzero()[:, 0]
            if alive.numel() < bank.experts:
                a, b, scaling, weights = a[alive], b[alive], scaling[alive], weights[..., alive]
        return add_experts(bank, x, inner_states(bank, x, a), weights * scaling, b)
