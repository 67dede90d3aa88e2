"""Gates: how the rows of a batch use the experts of a bank.

Letters: B batch, S positions, E experts, K experts per row.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dynamorouter.errors import BankShapeError

if TYPE_CHECKING:
    from dynamorouter.model.lora.bank import LoraBank
    from dynamorouter.model.lora.fusion import FusionLayer


class RowGate:
    """Each row of a batch goes through K experts of its own.

    Args:
        experts: expert indices ``(B,)`` or ``(B, K)``; -1 stands for "no expert".
        weights: weights of the same shape, or ``None`` for one each; differentiable.
    """

    def __init__(self, experts: Tensor, weights: Tensor | None = None) -> None:
        if weights is not None and weights.shape != experts.shape:
            raise BankShapeError(
                f"gate weights have shape {tuple(weights.shape)}, but the experts {tuple(experts.shape)}; "
                "give one weight per chosen expert"
            )
        chosen = experts.reshape(experts.shape[0], -1)
        absent = chosen < 0
        self.rows = chosen.shape[0]
        self.per_row = chosen.shape[1]
        self.empty = bool(absent.all())
        self.largest = int(chosen.max()) if chosen.numel() else -1
        self.weights = None if weights is None else weights.reshape(chosen.shape)
        if bool(absent.any()):
            present = (~absent).to(torch.get_default_dtype() if weights is None else weights.dtype)
            self.weights = present if self.weights is None else self.weights * present
        self.experts = chosen.clamp_min(0)
        self.flat = self.experts.reshape(-1)
        plain = self.per_row == 1 and self.weights is None and self.largest >= 0
        self.single = self.largest if plain and int(chosen.min()) == self.largest else None
        self.held: dict[LoraBank, tuple[Tensor, Tensor]] | None = None

    def hold(self) -> RowGate:
        """Return the same gate, for which every bank keeps the rows' factors: for many passes of one position."""
        kept = copy(self)
        kept.held = {}
        return kept

    def select(self, rows: Tensor) -> RowGate:
        """Return the gate of some of the rows, ``(N,)``."""
        absent = self.experts if self.weights is None else self.experts.where(self.weights != 0, -1)
        return RowGate(absent[rows], None if self.weights is None else self.weights[rows])


class SoftGate:
    """Every expert is used with its own weight.

    Args:
        weights: ``(B, E)`` for each row, or ``(B, S, E)`` for each position; differentiable.
    """

    def __init__(self, weights: Tensor) -> None:
        if weights.dim() not in (2, 3):
            raise BankShapeError(f"a soft gate is (B, E) or (B, S, E), but has shape {tuple(weights.shape)}")
        self.rows = weights.shape[0]
        self.weights = weights[:, None] if weights.dim() == 2 else weights

    def select(self, rows: Tensor) -> SoftGate:
        """Return the gate of some of the rows, ``(N,)``."""
        kept = self.weights[rows]
        return SoftGate(kept[:, 0] if kept.shape[1] == 1 else kept)


class FusionGate:
    """Each layer weighs the source experts itself, at each position, by attention (see ``model.fusion``).

    Args:
        layers: name of a linear layer to its attention; layers that are not named are left as the base has them.
        sources: indices of the source experts, ``(E,)``, in the order of the layers' keys.
        rows: number of rows B, all of which are gated alike.
    """

    def __init__(self, layers: Mapping[str, FusionLayer], sources: Tensor, *, rows: int) -> None:
        self.layers = layers
        self.sources = sources
        self.rows = rows
        self.largest = int(sources.max())

    def select(self, rows: Tensor) -> FusionGate:
        """Return the gate of some of the rows, ``(N,)``."""
        return FusionGate(self.layers, self.sources, rows=rows.numel())
