"""Low-rank experts side by side over one frozen linear layer (Hu et al., 2021).

The factors of all experts are stacked, A ``(E, R, D)`` and B ``(E, O, R)``; unequal ranks are padded with zeros,
which is exact. A gate says how each row of a batch uses them. Nothing is swapped, toggled or looped over.

Letters: B batch, S positions, D in, O out, E experts, R rank, K experts per row.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dynamorouter.errors import BankShapeError
from dynamorouter.model.lora.factors import Factors

Linear = nn.Linear | Conv1D


class RunningPass(Protocol):
    """The pass that is running, as banks and their gates see it (see ``model.base.context``).

    Attributes:
        dropout: on the experts' input, one probability for all rows or one for each, ``(B,)``.
    """

    dropout: float | Tensor

    def apply(self, bank: LoraBank, x: Tensor) -> Tensor:
        """Map ``(B, S, D)`` to ``(B, S, O)`` through a bank's frozen layer and the experts that are gated."""


class LoraBank(nn.Module):
    """Experts over one frozen linear layer.

    Args:
        base: the frozen ``nn.Linear`` or GPT-2 ``Conv1D``.
        context: the pass that is running, which knows the gate.
        experts: number of experts E.
        rank: the largest rank R; smaller ones are padded with zeros.
        name: the layer's name in its base.
    """

    def __init__(self, base: Linear, context: RunningPass, *, experts: int, rank: int, name: str = "") -> None:
        super().__init__()
        self.name = name
        self.base = base
        self.transposed = isinstance(base, Conv1D)
        shape = base.weight.shape
        self.out_features, self.in_features = (shape[1], shape[0]) if self.transposed else (shape[0], shape[1])
        self.context = context
        factory: dict[str, Any] = {"device": base.weight.device, "dtype": torch.float32}
        self.a = nn.Parameter(torch.zeros(experts, rank, self.in_features, **factory))
        self.b = nn.Parameter(torch.zeros(experts, self.out_features, rank, **factory))
        self.scaling: Tensor
        self.register_buffer("scaling", torch.zeros(experts, **factory), persistent=False)

    @property
    def weight(self) -> Tensor:
        """The frozen weight, for models that look at its dtype."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.base.bias

    @property
    def experts(self) -> int:
        """Number of experts E."""
        return self.a.shape[0]

    @property
    def rank(self) -> int:
        """The padded rank R."""
        return self.a.shape[1]

    def put(self, index: int, factors: Factors, *, name: str = "") -> None:
        """Write one expert's factors, padding its rank with zeros.

        Raises:
            BankShapeError: the factors do not fit this layer, or their rank exceeds the bank's.
        """
        rank, width = factors.a.shape
        if (width, factors.b.shape) != (self.in_features, (self.out_features, rank)):
            raise BankShapeError(
                f"layer {name!r} maps {self.in_features} to {self.out_features}, but the factors of expert {index} are "
                f"A {tuple(factors.a.shape)} and B {tuple(factors.b.shape)}; they belong to another base"
            )
        if rank > self.rank:
            raise BankShapeError(
                f"expert {index} has rank {rank} on layer {name!r}, but the bank holds rank {self.rank}; "
                f"build the bank with rank={rank}"
            )
        with torch.no_grad():
            self.a[index].zero_()
            self.b[index].zero_()
            self.a[index, :rank] = factors.a
            self.b[index, :, :rank] = factors.b
            self.scaling[index] = factors.scaling

    def clear(self, index: int) -> None:
        """Make a slot empty: zeros, which change nothing."""
        with torch.no_grad():
            for stacked in (self.a, self.b, self.scaling):
                stacked[index].zero_()

    def resize(self, *, experts: int | None = None, rank: int | None = None) -> None:
        """Make room for more experts or a higher rank, or cut off what holds zeros only; nothing is lost or moved.

        Args:
            experts: number of experts E from now on.
            rank: the padded rank R from now on.
        """
        size = (self.experts if experts is None else experts, self.rank if rank is None else rank)
        if size == (self.experts, self.rank):
            return
        common_experts, common_rank = min(size[0], self.experts), min(size[1], self.rank)
        a = self.a.new_zeros(*size, self.in_features)
        b = self.b.new_zeros(size[0], self.out_features, size[1])
        scaling = self.scaling.new_zeros(size[0])
        with torch.no_grad():
            a[:common_experts, :common_rank] = self.a[:common_experts, :common_rank]
            b[:common_experts, :, :common_rank] = self.b[:common_experts, :, :common_rank]
            scaling[:common_experts] = self.scaling[:common_experts]
        self.a = nn.Parameter(a, requires_grad=self.a.requires_grad)
        self.b = nn.Parameter(b, requires_grad=self.b.requires_grad)
        self.scaling = scaling

    def get(self, index: int, rank: int) -> Factors:
        """Return a copy of one expert's factors at its own rank, on the CPU."""
        a = self.a[index, :rank].detach().cpu().clone()
        b = self.b[index, :, :rank].detach().cpu().clone().contiguous()
        return Factors(a=a, b=b, scaling=float(self.scaling[index]))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, S, D)`` (or ``(B, D)``) to ``(B, S, O)`` through the frozen layer and the gated experts."""
        if x.dim() == 2:
            return self.context.apply(self, x[:, None])[:, 0]
        return self.context.apply(self, x)

    def check_expert(self, largest: int) -> None:
        """Refuse a gate that names an expert which is not there.

        Raises:
            BankShapeError: the largest index is none of the bank's.
        """
        if largest >= self.experts:
            raise BankShapeError(f"the gate names expert {largest}, but the bank holds {self.experts}, from 0")
