"""One expert, or a few weighted ones, for each row.

Letters: B batch, S positions, D in, O out, K experts per row, R rank, N some of the rows.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dynamorouter.errors import BankShapeError
from dynamorouter.model.base.gate import Gate
from dynamorouter.model.lora.kernels import RowLinear, drop

if TYPE_CHECKING:
    from dynamorouter.model.lora.bank import LoraBank


class RowGate(Gate):
    """Each row of a batch goes through K experts of its own, as one pair of batched matmuls of rank K*R.

    Args:
        experts: expert indices ``(B,)`` or ``(B, K)``; -1 stands for "no expert".
        weights: weights of the same shape, or ``None`` for one each; differentiable.

    Attributes:
        single: the expert of all rows, where they have one without a weight.
        cache: what each bank keeps of the rows' factors, if the gate was made by ``cached``.

    Raises:
        BankShapeError: experts and weights differ in shape.
    """

    def __init__(self, experts: Tensor, weights: Tensor | None = None) -> None:
        if weights is not None and weights.shape != experts.shape:
            raise BankShapeError(
                f"gate weights have shape {tuple(weights.shape)}, but the experts {tuple(experts.shape)}; "
                "give one weight per chosen expert"
            )
        indices = experts.reshape(experts.shape[0], -1)
        absent = indices < 0
        self.rows = indices.shape[0]
        self.per_row = indices.shape[1]
        self._empty = bool(absent.all())
        self.largest = int(indices.max()) if indices.numel() else -1
        self.weights = None if weights is None else weights.reshape(indices.shape)
        if bool(absent.any()):
            present = (~absent).to(torch.get_default_dtype() if weights is None else weights.dtype)
            self.weights = present if self.weights is None else self.weights * present
        self.experts = indices.clamp_min(0)
        self.flat = self.experts.reshape(-1)
        plain = self.per_row == 1 and self.weights is None and self.largest >= 0
        self.single = self.largest if plain and int(indices.min()) == self.largest else None
        self.cache: dict[LoraBank, tuple[Tensor, Tensor]] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no row has an expert."""
        return self._empty

    def cached(self) -> RowGate:
        """Return the same gate, for which every bank keeps the rows' factors."""
        gate = copy(self)
        gate.cache = {}
        return gate

    def select(self, rows: Tensor) -> RowGate:
        """Return the gate of some of the rows, ``(N,)``, which keeps nothing."""
        experts = self.experts if self.weights is None else self.experts.where(self.weights != 0, -1)
        return RowGate(experts[rows], None if self.weights is None else self.weights[rows])

    def apply(self, bank: LoraBank, x: Tensor) -> Tensor:
        """Map ``(B, S, D)`` to ``(B, S, O)``, each row through its own experts."""
        bank.check_expert(self.largest)
        if torch.is_grad_enabled():
            a, b, c = self._gather(bank, x.dtype)
            dropped = drop(x, bank.context.dropout)
            weight = bank.weight.t() if bank.transposed else bank.weight
            return RowLinear.apply(x, dropped, weight, bank.bias, a, b, c)  # type: ignore[no-any-return,no-untyped-call]
        if self.single is not None:
            return _apply_one(bank, x, self.single)
        if self.cache is not None and x.shape[1] == 1:
            a, b = self._gather_cached(bank, self.cache, x.dtype)
            return bank.base(x).baddbmm_(torch.bmm(x, a), b)  # type: ignore[no-any-return]
        a, b, c = self._gather(bank, x.dtype)
        y = bank.base(x)
        h = torch.bmm(a, x.transpose(1, 2)).mul_(c)  # (B, K*R, S)
        return y.baddbmm_(h.transpose(1, 2), b.transpose(1, 2))  # type: ignore[no-any-return]

    def _gather(self, bank: LoraBank, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return each row's factors side by side, ``(B, K*R, D)`` and ``(B, O, K*R)``, and their scale."""
        width, rank = self.per_row, bank.rank
        a = bank.a.index_select(0, self.flat).to(dtype)
        b = bank.b.index_select(0, self.flat).to(dtype)
        c = bank.scaling[self.experts]
        if self.weights is not None:
            c = c * self.weights
        if width == 1:
            c = c[..., None]  # (B, 1, 1)
        else:
            a = a.view(self.rows, width * rank, bank.in_features)
            b = b.view(self.rows, width, bank.out_features, rank).transpose(1, 2).reshape(self.rows, -1, width * rank)
            c = c.repeat_interleave(rank, dim=1)[..., None]  # (B, K*R, 1)
        return a, b, c.to(dtype)

    def _gather_cached(
        self, bank: LoraBank, cache: dict[LoraBank, tuple[Tensor, Tensor]], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return what is kept of a layer, as bmm likes it: ``(B, D, K*R)``, and scaled ``(B, K*R, O)``."""
        if bank not in cache:
            a, b, c = self._gather(bank, torch.promote_types(dtype, torch.float32))
            cache[bank] = (
                a.transpose(1, 2).to(dtype).contiguous(),
                (b.transpose(1, 2) * c).to(dtype).contiguous(),
            )
        return cache[bank]


def _apply_one(bank: LoraBank, x: Tensor, expert: int) -> Tensor:
    """Send all rows ``(B, S, D)`` through one expert: two plain matmuls."""
    b = (bank.b[expert] * bank.scaling[expert]).to(x.dtype)
    y: Tensor = bank.base(x)
    h = x.flatten(0, 1) @ bank.a[expert].t().to(x.dtype)  # (B*S, R)
    y.view(-1, bank.out_features).addmm_(h, b.t())
    return y
