"""Low-rank experts side by side over one frozen linear layer (Hu et al., 2021).

The factors of all experts are stacked, A ``(E, R, D)`` and B ``(E, O, R)``; unequal ranks are padded with zeros,
which is exact. A gate says how each row of a batch uses them. Nothing is swapped, toggled or looped over.

Letters: B batch, S positions, D in, O out, E experts, R rank, K experts per row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from dynamorouter.errors import BankShapeError
from dynamorouter.model.base.gate import Dropout, GateSlot
from dynamorouter.model.lora.factors import Factors
from dynamorouter.model.lora.gates import FusionGate, RowGate, SoftGate

if TYPE_CHECKING:
    pass

Linear = nn.Linear | Conv1D


def _drop(x: Tensor, dropout: Dropout) -> Tensor | None:
    """Return ``(B, S, D)`` after dropout, or ``None`` where there is none to do."""
    if not torch.is_grad_enabled():
        return None
    if isinstance(dropout, Tensor):
        chance = dropout.to(x.dtype)[:, None, None]
        return x * (torch.rand_like(x) >= chance) / (1 - chance)
    return functional.dropout(x, dropout) if dropout > 0 else None


class _RowLinear(torch.autograd.Function):
    """``x W + (c * x' A_row) B_row``, accumulated in place, with a backward of the same cost as PEFT's least.

    ``x'`` is ``x`` after dropout. The frozen weight gets no gradient; neither does anything else that is frozen. Inner
    states are kept with their rank before their positions, ``(B, K*R, S)``: few rows and many columns are what batched
    matmuls are quick with.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        c: Tensor,
    ) -> Tensor:
        read = x if dropped is None else dropped
        h = torch.bmm(a, read.transpose(1, 2))
        y = functional.linear(x, weight, bias)
        y.baddbmm_((h * c).transpose(1, 2), b.transpose(1, 2))
        ctx.save_for_backward(read, weight, a, b, c, h)
        ctx.split = dropped is not None
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        read, weight, a, b, c, h = ctx.saved_tensors
        (g,) = grads
        need_x, need_dropped, _, _, need_a, need_b, need_c = ctx.needs_input_grad
        gb = torch.bmm(b.transpose(1, 2), g.transpose(1, 2))
        gh = gb * c
        dx = g @ weight if need_x else None
        dropped = torch.bmm(gh.transpose(1, 2), a) if ctx.split and need_dropped else None
        if dx is not None and not ctx.split:
            dx.baddbmm_(gh.transpose(1, 2), a)
        da = torch.bmm(gh, read) if need_a else None
        db = torch.bmm(h * c, g).transpose(1, 2) if need_b else None
        dc = (gb * h).sum(dim=2, keepdim=True) if need_c else None
        return dx, dropped, None, None, da, db, dc


class LoraBank(nn.Module):
    """Experts over one frozen linear layer.

    Args:
        base: the frozen ``nn.Linear`` or GPT-2 ``Conv1D``.
        slot: where the gate of the running pass is found.
        experts: number of experts E.
        rank: the largest rank R; smaller ones are padded with zeros.
        name: the layer's name in its base.
    """

    def __init__(self, base: Linear, slot: GateSlot, *, experts: int, rank: int, name: str = "") -> None:
        super().__init__()
        self.name = name
        self.base = base
        self.transposed = isinstance(base, Conv1D)
        shape = base.weight.shape
        self.out_features, self.in_features = (shape[1], shape[0]) if self.transposed else (shape[0], shape[1])
        self.slot = slot
        place: dict[str, Any] = {"device": base.weight.device, "dtype": torch.float32}
        self.a = nn.Parameter(torch.zeros(experts, rank, self.in_features, **place))
        self.b = nn.Parameter(torch.zeros(experts, self.out_features, rank, **place))
        self.scaling: Tensor
        self.register_buffer("scaling", torch.zeros(experts, **place), persistent=False)

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

    def get(self, index: int, rank: int) -> Factors:
        """Return a copy of one expert's factors at its own rank, on the CPU."""
        a = self.a[index, :rank].detach().cpu().clone()
        b = self.b[index, :, :rank].detach().cpu().clone().contiguous()
        return Factors(a=a, b=b, scaling=float(self.scaling[index]))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, S, D)`` (or ``(B, D)``) to ``(B, S, O)`` through the frozen layer and the gated experts."""
        gate = self.slot.gate
        if gate is None:
            return self.base(x)  # type: ignore[no-any-return]
        if x.shape[0] != gate.rows:
            raise BankShapeError(
                f"the gate has {gate.rows} rows, but the batch has {x.shape[0]}; set one row per input"
            )
        flat = x.dim() == 2
        x = x[:, None] if flat else x
        if isinstance(gate, RowGate):
            y = self._rows(x, gate)
        else:
            y = self._soft(x, gate) if isinstance(gate, SoftGate) else self._fused(x, gate)
        return y[:, 0] if flat else y

    def _rows(self, x: Tensor, gate: RowGate) -> Tensor:
        """Send each row through its own experts, as one pair of batched matmuls of rank K*R."""
        self._check_largest(gate.largest)
        if torch.is_grad_enabled():
            a, b, c = self._gather(gate, x.dtype)
            dropped = _drop(x, self.slot.dropout)
            weight = self.weight.t() if self.transposed else self.weight
            return _RowLinear.apply(x, dropped, weight, self.bias, a, b, c)  # type: ignore[no-any-return,no-untyped-call]
        if gate.single is not None:
            return self._alike(x, gate.single)
        if gate.held is not None and x.shape[1] == 1:
            a, b = self._hold(gate, gate.held, x.dtype)
            return self.base(x).baddbmm_(torch.bmm(x, a), b)  # type: ignore[no-any-return]
        a, b, c = self._gather(gate, x.dtype)
        y = self.base(x)
        h = torch.bmm(a, x.transpose(1, 2)).mul_(c)  # (B, K*R, S)
        return y.baddbmm_(h.transpose(1, 2), b.transpose(1, 2))  # type: ignore[no-any-return]

    def _gather(self, gate: RowGate, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return each row's factors side by side, ``(B, K*R, D)`` and ``(B, O, K*R)``, and their scale."""
        width, rank = gate.per_row, self.rank
        a = self.a.index_select(0, gate.flat).to(dtype)
        b = self.b.index_select(0, gate.flat).to(dtype)
        c = self.scaling[gate.experts]
        if gate.weights is not None:
            c = c * gate.weights
        if width == 1:
            c = c[..., None]  # (B, 1, 1)
        else:
            a = a.view(gate.rows, width * rank, self.in_features)
            b = b.view(gate.rows, width, self.out_features, rank).transpose(1, 2).reshape(gate.rows, -1, width * rank)
            c = c.repeat_interleave(rank, dim=1)[..., None]  # (B, K*R, 1)
        return a, b, c.to(dtype)

    def _hold(
        self, gate: RowGate, held: dict[LoraBank, tuple[Tensor, Tensor]], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return what a held gate keeps of this layer, as bmm likes it: ``(B, D, K*R)``, and scaled ``(B, K*R, O)``."""
        if self not in held:
            a, b, c = self._gather(gate, torch.promote_types(dtype, torch.float32))
            held[self] = (
                a.transpose(1, 2).to(dtype).contiguous(),
                (b.transpose(1, 2) * c).to(dtype).contiguous(),
            )
        return held[self]

    def _alike(self, x: Tensor, expert: int) -> Tensor:
        """Send all rows through one expert: two plain matmuls."""
        b = (self.b[expert] * self.scaling[expert]).to(x.dtype)
        y: Tensor = self.base(x)
        h = x.flatten(0, 1) @ self.a[expert].t().to(x.dtype)  # (B*S, R)
        y.view(-1, self.out_features).addmm_(h, b.t())
        return y

    def _soft(self, x: Tensor, gate: SoftGate) -> Tensor:
        """All experts as one factor pair of rank E*R, the gate multiplied in between; idle experts are left out."""
        weights = gate.weights  # (B, 1 or S, E)
        if weights.shape[-1] != self.experts:
            raise BankShapeError(f"the soft gate weighs {weights.shape[-1]} experts, but the bank holds {self.experts}")
        a: Tensor = self.a
        b: Tensor = self.b
        scaling = self.scaling
        if not weights.requires_grad:
            alive = (weights != 0).flatten(0, 1).any(dim=0).nonzero()[:, 0]
            if alive.numel() < self.experts:
                a, b, scaling, weights = a[alive], b[alive], scaling[alive], weights[..., alive]
        return self._spread(x, self._inner(x, a), weights * scaling, b)

    def _fused(self, x: Tensor, gate: FusionGate) -> Tensor:
        """The soft path, the weights being read off the input and the experts' inner states."""
        self._check_largest(gate.largest)
        layer = gate.layers.get(self.name)
        if layer is None:
            return self.base(x)  # type: ignore[no-any-return]
        rank = layer.rank  # of the sources alone: the bank's may be larger, and is zero from there on
        h = self._inner(x, self.a[gate.sources, :rank])
        weights = layer(x, h)  # (B, S, E)
        return self._spread(x, h, weights * self.scaling[gate.sources], self.b[gate.sources, :, :rank])

    def _inner(self, x: Tensor, a: Tensor) -> Tensor:
        """Return the inner states ``(B, S, E, R)`` of experts with A ``(E, R, D)``, after dropout on their input."""
        dropped = _drop(x, self.slot.dropout)
        read = x if dropped is None else dropped
        h = functional.linear(read, a.flatten(0, 1).to(x.dtype))  # (B, S, E*R)
        return h.unflatten(-1, (-1, a.shape[1]))  # type: ignore[no-any-return,no-untyped-call]

    def _spread(self, x: Tensor, h: Tensor, weights: Tensor, b: Tensor) -> Tensor:
        """Return the frozen layer's output and the experts', from B ``(E, O, R)`` and weights ``(B, 1 or S, E)``."""
        h = h * weights.to(x.dtype)[..., None]
        stacked = b.transpose(0, 1).reshape(self.out_features, -1).to(x.dtype)  # (O, E*R)
        return self.base(x) + functional.linear(h.flatten(-2), stacked)  # type: ignore[no-any-return]

    def _check_largest(self, largest: int) -> None:
        if largest >= self.experts:
            raise BankShapeError(f"the gate names expert {largest}, but the bank holds {self.experts}, from 0")
