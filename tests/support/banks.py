"""A small bank with random experts, and experts without a head to mount on a base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from dynamorouter.model.base.base import Base
from dynamorouter.model.base.context import PassContext
from dynamorouter.model.lora.bank import LoraBank
from dynamorouter.model.lora.factors import Factors
from dynamorouter.utils.seeding import seeded

EXPERTS, RANK, WIDTH, OUT = 5, 3, 6, 4


@dataclass(frozen=True)
class Change:
    """An expert without a head."""

    name: str
    factors: Mapping[str, Factors]


def random_change(
    base: Base, name: str, layers: Mapping[str, int], *, scaling: float = 1.0, std: float = 0.3
) -> Change:
    """Draw an expert by its name; ``layers`` are the names of linear layers and its rank on each."""
    factors = {}
    for layer, rank in layers.items():
        out, width = base.shape(layer)
        generator = seeded(0, name, layer)
        a = torch.empty(rank, width).normal_(std=std, generator=generator)
        factors[layer] = Factors(a, torch.empty(out, rank).normal_(std=std, generator=generator), scaling)
    return Change(name, factors)


def make_bank(kind: str = "linear", *, dtype: torch.dtype = torch.float64) -> LoraBank:
    torch.manual_seed(0)
    base = nn.Linear(WIDTH, OUT) if kind == "linear" else Conv1D(OUT, WIDTH)
    nn.init.normal_(base.bias)
    bank = LoraBank(base.requires_grad_(False).to(dtype), PassContext(), experts=EXPERTS, rank=RANK).to(dtype)
    nn.init.normal_(bank.a)
    nn.init.normal_(bank.b)
    bank.scaling.copy_(torch.linspace(0.5, 2.0, EXPERTS))
    return bank


def pass_over(bank: LoraBank) -> PassContext:
    """Return what holds the gate of the pass that goes through a bank."""
    assert isinstance(bank.context, PassContext)
    return bank.context
