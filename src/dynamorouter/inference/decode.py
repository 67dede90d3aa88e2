"""Decoding of windows whose rows belong to different experts.

Letters: B windows, S positions, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dynamorouter.model.heads.base import EncoderHead
from dynamorouter.model.text.batching import rows_of
from dynamorouter.model.text.tokenize import TextPair, Window


def decode(
    hidden: Tensor,
    mask: Tensor,
    windows: Sequence[Window],
    rows: Sequence[TextPair],
    experts: Sequence[int],
    heads: Sequence[EncoderHead] | Mapping[int, EncoderHead],
) -> list[Any]:
    """Decode each window with the head of its expert; heads run once per expert that is present.

    Args:
        hidden: last hidden states ``(B, S, D)``.
        mask: ``(B, S)``.
        windows: what the batch was made of.
        rows: the text of each window.
        experts: the expert of each window.
        heads: by expert.
    """
    parts: list[Any] = [None] * len(windows)
    for expert, positions in rows_of(experts).items():
        at = torch.as_tensor(positions, device=hidden.device)
        longest = max(len(windows[i]) for i in positions)
        logits = heads[expert].logits(hidden[at, :longest], mask[at, :longest])
        chosen = heads[expert].parts(logits, [windows[i] for i in positions], [rows[i] for i in positions])
        for position, part in zip(positions, chosen, strict=True):
            parts[position] = part
    return parts
