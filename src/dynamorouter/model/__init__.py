"""Frozen bases, banks of experts over their layers, heads, texts as tokens, and PEFT's adapter folders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamorouter.utils.lazy import lazy_names

__all__ = [
    "Adapter",
    "Base",
    "Batch",
    "Expert",
    "Head",
    "LoraBank",
    "RowGate",
    "SoftGate",
    "TextEncoder",
    "build_head",
    "load_adapter",
    "save_adapter",
]

if TYPE_CHECKING:
    from dynamorouter.model.base.base import Base
    from dynamorouter.model.heads.base import Head, build_head
    from dynamorouter.model.lora.bank import LoraBank
    from dynamorouter.model.lora.expert import Expert
    from dynamorouter.model.lora.gates import RowGate, SoftGate
    from dynamorouter.model.lora.peft import Adapter, load_adapter, save_adapter
    from dynamorouter.model.text.tokenize import Batch, TextEncoder
else:
    __getattr__, __dir__ = lazy_names(__name__)
