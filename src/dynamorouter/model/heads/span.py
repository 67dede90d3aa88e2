"""The span of a context that answers a question (Rajpurkar et al., 2016).

Letters: B windows, S positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dynamorouter.errors import DataError
from dynamorouter.model.heads.base import EncoderHead, WindowTarget, heads
from dynamorouter.model.text.tokenize import TextPair, Window
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.record import Record


@heads.register("span")
class SpanHead(EncoderHead):
    """The span of the context (or of the text, where there is none) that answers a question (SQuAD v1.1).

    Args:
        max_answer: longest answer, in tokens.
    """

    kind = "span"

    def __init__(self, width: int, labels: Sequence[str] = (), *, max_answer: int = 30, dropout: float = 0.0) -> None:
        super().__init__(width, labels, max_answer=max_answer, dropout=dropout)
        self.max_answer = max_answer
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, 2)

    def target(self, window: Window, record: Record) -> WindowTarget | None:
        """Return the first answer's first and last token, or the first token twice where the window lacks it."""
        if not isinstance(record.target, dict):
            raise DataError(f"row {record.id!r}: the target of a span task is texts and starts, not {record.target!r}")
        start = int(record.target["starts"][0])
        end = start + len(str(record.target["texts"][0]))
        inside = [
            at
            for at, (begin, stop) in enumerate(window.encoding.offsets)
            if window.encoding.sequence_ids[at] == 1 and begin < end and stop > start and stop > begin
        ]
        if not inside:
            return np.array([0, 0])
        begins, stops = window.encoding.offsets[inside[0]][0], window.encoding.offsets[inside[-1]][1]
        whole = begins <= start and stops >= end
        return np.array([inside[0], inside[-1]] if whole else [0, 0])

    def units(self, target: WindowTarget) -> int:
        """One per window."""
        return 1

    def _logits(self, hidden: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.out(self.dropout(hidden.float())).masked_fill(~allowed[..., None], -1e9)
        start, end = logits.unbind(dim=-1)
        return start, end

    def loss(self, hidden: Tensor, mask: Tensor, targets: Sequence[WindowTarget]) -> Tensor:
        """Mean of the cross-entropies of the first and the last token."""
        start, end = self._logits(hidden, mask.bool())
        gold = torch.as_tensor(np.stack(list(targets)), device=hidden.device)
        first = functional.cross_entropy(start, gold[:, 0], reduction="none")
        return (first + functional.cross_entropy(end, gold[:, 1], reduction="none")) / 2

    def parts(self, hidden: Tensor, mask: Tensor, windows: Sequence[Window], rows: Sequence[TextPair]) -> list[Any]:
        """Return (logit, probability, first character, last character) of each window's best span."""
        allowed = np.zeros(mask.shape, dtype=bool)
        for i, (window, (_, pair)) in enumerate(zip(windows, rows, strict=True)):
            wanted = 0 if pair is None else 1
            allowed[i, : len(window)] = [kind == wanted for kind in window.encoding.sequence_ids]
        start, end = self._logits(hidden, torch.as_tensor(allowed, device=hidden.device))
        size = hidden.shape[1]
        band = torch.ones(size, size, dtype=torch.bool, device=hidden.device).triu().tril(self.max_answer - 1)
        scores = (start[:, :, None] + end[:, None, :]).masked_fill(~band, -torch.inf).flatten(1)
        best = scores.argmax(dim=1)
        first, last = best // size, best % size
        row = torch.arange(len(windows), device=hidden.device)
        chance = start.softmax(dim=1)[row, first] * end.softmax(dim=1)[row, last]
        columns = (scores[row, best], chance, first, last)
        return [
            (logit, p, w.encoding.offsets[int(a)][0], w.encoding.offsets[int(b)][1])
            for w, logit, p, a, b in zip(windows, *(c.tolist() for c in columns), strict=True)
        ]

    def merge(self, parts: Sequence[Any], row: TextPair) -> Answer:
        """Take the span with the highest logits of all windows."""
        _, chance, begin, stop = max(parts)
        source = row[0] if row[1] is None else row[1]
        return Answer("span", source[begin:stop], chance)
