"""One tag for each word of a text.

Letters: B windows, S positions, D width, C tags.
"""

from __future__ import annotations

import math
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
from dynamorouter.tasks.text import word_spans


@heads.register("tags")
class TagsHead(EncoderHead):
    """A tag for each whitespace-separated word, read off its first subword."""

    kind = "tags"

    def __init__(self, width: int, labels: Sequence[str], *, dropout: float = 0.1) -> None:
        super().__init__(width, labels, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, len(self.labels))

    def target(self, window: Window, record: Record) -> WindowTarget | None:
        """Return (position, tag) of each word that begins in this window, flattened."""
        if not isinstance(record.target, list):
            raise DataError(f"row {record.id!r}: the target of a tagging task is a list of tags, not {record.target!r}")
        found = first_subwords(window, record.text)
        pairs = [(position, self.labels.index(record.target[word])) for word, position in found.items()]
        return np.array(pairs).ravel() if pairs else None

    def units(self, target: WindowTarget) -> int:
        """One per word."""
        return len(target) // 2

    def loss(self, hidden: Tensor, mask: Tensor, targets: Sequence[WindowTarget]) -> Tensor:
        """Sum of the words' cross-entropies in each window."""
        table = np.concatenate([np.c_[np.full(len(t) // 2, row), t.reshape(-1, 2)] for row, t in enumerate(targets)])
        row, position, gold = torch.as_tensor(table, device=hidden.device).unbind(dim=1)
        logits = self.out(self.dropout(hidden[row, position].float()))
        losses = functional.cross_entropy(logits, gold, reduction="none")
        return torch.zeros(len(targets), device=hidden.device).index_add(0, row, losses)

    def parts(self, hidden: Tensor, mask: Tensor, windows: Sequence[Window], rows: Sequence[TextPair]) -> list[Any]:
        """Return ``{word: (tag, probability)}`` for each window."""
        score, best = self.out(hidden.float()).softmax(dim=-1).max(dim=-1)
        scores, tags = score.cpu().numpy(), best.cpu().numpy()
        return [
            {word: (int(tags[i, at]), float(scores[i, at])) for word, at in first_subwords(w, text).items()}
            for i, (w, (text, _)) in enumerate(zip(windows, rows, strict=True))
        ]

    def merge(self, parts: Sequence[Any], row: TextPair) -> Answer:
        """Tag every word by the first window that holds it; words that the tokenizer drops are outside."""
        outside = self.labels.index("O") if "O" in self.labels else 0
        found: dict[int, tuple[int, float]] = {}
        for part in parts:
            found = {**part, **found}
        words = len(word_spans(row[0]))
        tags = [self.labels[found[word][0] if word in found else outside] for word in range(words)]
        score = math.exp(sum(math.log(max(p, 1e-12)) for _, p in found.values()) / max(len(found), 1))
        return Answer("tags", tags, score)


def first_subwords(window: Window, text: str) -> dict[int, int]:
    """Map each word of ``text`` that begins in this window to the position of its first subword."""
    found: dict[int, int] = {}
    spans = word_spans(text)
    word = 0
    for at, ((begin, end), sequence) in enumerate(
        zip(window.encoding.offsets, window.encoding.sequence_ids, strict=True)
    ):
        if sequence != 0 or begin == end:
            continue
        while word < len(spans) and spans[word][1] <= begin:
            word += 1
        if word < len(spans) and begin <= spans[word][0] < end:
            found.setdefault(word, at)
    return found
