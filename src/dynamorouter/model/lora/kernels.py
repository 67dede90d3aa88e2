"""The arithmetic that gates share: dropout on the experts' input, and the two ways through a bank.

Letters: B batch, S positions, D in, O out, E experts, R rank, K experts per row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from dynamorouter.model.base.gate import Dropout

if TYPE_CHECKING:
    from dynamorouter.model.lora.bank import LoraBank


def drop(x: Tensor, dropout: Dropout) -> Tensor | None:
    """Return ``(B, S, D)`` after dropout, or ``None`` where there is none to do."""
    if not torch.is_grad_enabled():
        return None
    if isinstance(dropout, Tensor):
        chance = dropout.to(x.dtype)[:, None, None]
        return x * (torch.rand_like(x) >= chance) / (1 - chance)
    return functional.dropout(x, dropout) if dropout > 0 else None


class RowLinear(torch.autograd.Function):
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
        """Return ``(B, S, O)`` from ``x`` ``(B, S, D)``, A ``(B, K*R, D)``, B ``(B, O, K*R)`` and their scale ``c``."""
        read = x if dropped is None else dropped
        h = torch.bmm(a, read.transpose(1, 2))
        y = functional.linear(x, weight, bias)
        y.baddbmm_((h * c).transpose(1, 2), b.transpose(1, 2))
        ctx.save_for_backward(read, weight, a, b, c, h)
        ctx.split = dropped is not None
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients by the inputs of ``forward``, in their order; ``None`` for what is frozen."""
        read, weight, a, b, c, h = ctx.saved_tensors
        (g,) = grads
        need_x, needdropped, _, _, need_a, need_b, need_c = ctx.needs_input_grad
        gb = torch.bmm(b.transpose(1, 2), g.transpose(1, 2))
        gh = gb * c
        dx = g @ weight if need_x else None
        dropped = torch.bmm(gh.transpose(1, 2), a) if ctx.split and needdropped else None
        if dx is not None and not ctx.split:
            dx.baddbmm_(gh.transpose(1, 2), a)
        da = torch.bmm(gh, read) if need_a else None
        db = torch.bmm(h * c, g).transpose(1, 2) if need_b else None
        dc = (gb * h).sum(dim=2, keepdim=True) if need_c else None
        return dx, dropped, None, None, da, db, dc


def inner_states(bank: LoraBank, x: Tensor, a: Tensor) -> Tensor:
    """Return the inner states ``(B, S, E, R)`` of experts with A ``(E, R, D)``, after dropout on their input."""
    dropped = drop(x, bank.context.dropout)
    read = x if dropped is None else dropped
    h = functional.linear(read, a.flatten(0, 1).to(x.dtype))  # (B, S, E*R)
    return h.unflatten(-1, (-1, a.shape[1]))  # type: ignore[no-any-return,no-untyped-call]


def add_experts(bank: LoraBank, x: Tensor, h: Tensor, weights: Tensor, b: Tensor) -> Tensor:
    """Return the frozen layer's output ``(B, S, O)`` and the experts' on top.

    Args:
        bank: has the frozen layer.
        x: its input, ``(B, S, D)``.
        h: the experts' inner states, ``(B, S, E, R)``.
        weights: of the experts, scaling included, ``(B, 1 or S, E)``.
        b: ``(E, O, R)``.
    """
    h = h * weights.to(x.dtype)[..., None]
    stacked = b.transpose(0, 1).reshape(bank.out_features, -1).to(x.dtype)  # (O, E*R)
    return bank.base(x) + functional.linear(h.flatten(-2), stacked)  # type: ignore[no-any-return]
