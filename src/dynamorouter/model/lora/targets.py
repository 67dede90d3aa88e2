"""Which linear layers experts may change."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from dynamorouter.model.lora.bank import LoraBank

ATTENTION_NAMES = {
    *("query", "value", "q_proj", "v_proj", "q_lin", "v_lin", "query_proj", "value_proj", "q", "v"),
    *("c_attn", "qkv_proj", "query_key_value", "Wqkv"),
}
"""Names that the supported architectures give to their query and value projections."""


def linear_layers(stack: str, blocks: nn.ModuleList, *, first: int = 0) -> list[str]:
    """Name the linear layers of blocks ``first`` and up; a bank stands for the layer that it lies over."""
    return [
        f"{stack}.{index}.{name}"
        for index in range(first, len(blocks))
        for name, module in blocks[index].named_modules()
        if isinstance(module, nn.Linear | Conv1D | LoraBank) and not name.endswith(".base")
    ]


def matches(name: str, wanted: str | Sequence[str]) -> bool:
    """Tell whether ``wanted`` names a layer: a group, a regular expression for whole names, or name endings."""
    if wanted == "all-linear":
        return True
    if wanted == "attention":
        return name.rsplit(".", 1)[-1] in ATTENTION_NAMES
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name == ending or name.endswith("." + ending) for ending in wanted)
