"""A small bank with random experts."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from dynamorouter.model.base.gate import GateSlot
from dynamorouter.model.lora.bank import LoraBank

EXPERTS, RANK, WIDTH, OUT = 5, 3, 6, 4


def make_bank(kind: str = "linear", *, dtype: torch.dtype = torch.float64) -> LoraBank:
    torch.manual_seed(0)
    base = nn.Linear(WIDTH, OUT) if kind == "linear" else Conv1D(OUT, WIDTH)
    nn.init.normal_(base.bias)
    bank = LoraBank(base.requires_grad_(False).to(dtype), GateSlot(), experts=EXPERTS, rank=RANK).to(dtype)
    nn.init.normal_(bank.a)
    nn.init.normal_(bank.b)
    bank.scaling.copy_(torch.linspace(0.5, 2.0, EXPERTS))
    return bank
