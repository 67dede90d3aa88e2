"""Attention over the source experts of each layer (AdapterFusion, Pfeiffer et al., 2021).

Letters: B batch, S positions, D in, O out, E source experts, R rank, N some of the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from dynamorouter.model.base.gate import Gate
from dynamorouter.model.lora.kernels import add_experts, inner_states

if TYPE_CHECKING:
    from dynamorouter.model.lora.bank import LoraBank
    from dynamorouter.model.lora.fusion import FusionLayer


class FusionGate(Gate):
    """Each layer weighs the source experts itself, at each position, by attention (see ``model.lora.fusion``).

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

    def apply(self, bank: LoraBank, x: Tensor) -> Tensor:
        """Map ``(B, S, D)`` to ``(B, S, O)``, the weights being read off the input and the experts' inner states."""
        bank.check_expert(self.largest)
        layer = self.layers.get(bank.name)
        if layer is None:
            return bank.base(x)  # type: ignore[no-any-return]
        rank = layer.rank  # of the sources alone: the bank's may be larger, and is zero from there on
        h = inner_states(bank, x, bank.a[self.sources, :rank])
        weights = layer(x, h)  # (B, S, E)
        return add_experts(bank, x, h, weights * bank.scaling[self.sources], bank.b[self.sources, :, :rank])
