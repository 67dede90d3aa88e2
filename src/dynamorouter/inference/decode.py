"""Answers of rows that are read window by window, each by the head of its own expert.

Letters: B windows, S positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynamorouter.model.heads.base import EncoderHead
from dynamorouter.model.text.tokenize import TextPair, Window
from dynamorouter.tasks.answer import Answer


class RowDecoder:
    """Collects what heads make of the windows of rows, in whatever order passes come, and merges it row by row.

    Args:
        rows: texts and pairs.
        heads: the head that answers each; ``None`` for rows of which no window will come.
    """

    def __init__(self, rows: Sequence[TextPair], heads: Sequence[EncoderHead | None]) -> None:
        self.rows, self.heads = rows, heads
        self._parts: list[dict[int, Any]] = [{} for _ in rows]

    def add(self, hidden: Tensor, mask: Tensor, windows: Sequence[tuple[int, Window]]) -> None:
        """Decode a batch of windows; each head runs once over those of its rows.

        Args:
            hidden: last hidden states ``(B, S, D)``.
            mask: ``(B, S)``.
            windows: what the batch was made of, each with the position of its row.
        """
        by_head: dict[EncoderHead, list[int]] = {}
        for position, (row, _) in enumerate(windows):
            head = self.heads[row]
            assert head is not None
            by_head.setdefault(head, []).append(position)
        for head, positions in by_head.items():
            index = torch.as_tensor(positions, device=hidden.device)
            longest = max(len(windows[position][1]) for position in positions)
            logits = head.logits(hidden[index, :longest], mask[index, :longest])
            texts = [self.rows[windows[position][0]] for position in positions]
            parts = head.parts(logits, [windows[position][1] for position in positions], texts)
            for position, part in zip(positions, parts, strict=True):
                row, window = windows[position]
                self._parts[row][window.part] = part

    def answers(self) -> list[Answer | None]:
        """Return the answer of every row; ``None`` for rows of which no window came."""
        return [
            head.merge([parts[part] for part in sorted(parts)], row) if parts and head is not None else None
            for head, parts, row in zip(self.heads, self._parts, self.rows, strict=True)
        ]
