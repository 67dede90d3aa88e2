"""One tag for each word of a text.

Letters: B windows, S positions, D width, C tags.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dynamorouter.errors import DataError
from dynamorouter.model.base.kinds import is_bidirectional
from dynamorouter.model.heads.base import EncoderHead, WindowTarget, heads, take_linear
from dynamorouter.model.text.tokenize import TextPair, Window
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.kinds.tagging import OUTSIDE
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.text import word_spans

if TYPE_CHECKING:
    from dynamorouter.model.base.base import Base

CLASSIFIERS = ("gpt2", "gpt_neo", "gpt_neox", "bloom", "falcon", "mpt")
"""Decoders whose token classifiers have a layer ``classifier``; that of the others is ``score``."""


@heads.register("tags")
class TagsHead(EncoderHead):
    """A tag for each whitespace-separated word, read off its first subword."""

    kind = "tags"
    has_choices = True
    output_layer = "out"

    def __init__(self, width: int, labels: Sequence[str], *, dropout: float = 0.1) -> None:
        super().__init__(width, labels, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, len(self.labels))

    @classmethod
    def import_state(cls, tensors: dict[str, Tensor], base: Base) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Take up the only layer of a token classifier."""
        name = "score" if "score.weight" in tensors else "classifier"
        return {}, take_linear(tensors, name, "out")

    def export_state(self, base: Base) -> dict[str, Tensor]:
        """Return the weights as the base's token classifier has them."""
        reads_both_ways = is_bidirectional(base.config)
        name = "classifier" if reads_both_ways or base.config.model_type in CLASSIFIERS else "score"
        return {f"{name}.{leaf}": value for leaf, value in self.out.state_dict().items()}

    @property
    def is_linear(self) -> bool:
        """Always: there is one layer."""
        return True

    def logits(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return ``(B, S, T)`` in float32."""
        return self._logits(hidden)

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.out(self.dropout(hidden.float()))  # type: ignore[no-any-return]

    def target(self, window: Window, record: Record) -> WindowTarget | None:
        """Return (position, tag) of each word that begins in this window, flattened."""
        if not isinstance(record.target, list):
            raise DataError(f"row {record.id!r}: the target of a tagging task is a list of tags, not {record.target!r}")
        positions = first_subwords(window, record.text)
        pairs = [(position, self.labels.index(record.target[word])) for word, position in positions.items()]
        return np.array(pairs).ravel() if pairs else None

    def units(self, target: WindowTarget) -> int:
        """One per word."""
        return len(target) // 2

    def loss(self, hidden: Tensor, mask: Tensor, targets: Sequence[WindowTarget]) -> Tensor:
        """Sum of the words' cross-entropies in each window."""
        table = np.concatenate([np.c_[np.full(len(t) // 2, row), t.reshape(-1, 2)] for row, t in enumerate(targets)])
        row, position, gold = torch.as_tensor(table, device=hidden.device).unbind(dim=1)
        losses = functional.cross_entropy(self._logits(hidden[row, position]), gold, reduction="none")
        return torch.zeros(len(targets), device=hidden.device).index_add(0, row, losses)

    def parts(self, logits: Tensor, windows: Sequence[Window], rows: Sequence[TextPair]) -> list[Any]:
        """Return ``{word: (tag, probability)}`` for each window."""
        score, best = logits.softmax(dim=-1).max(dim=-1)
        scores, tags = score.cpu().numpy(), best.cpu().numpy()
        return [
            {
                word: (int(tags[i, position]), float(scores[i, position]))
                for word, position in first_subwords(window, text).items()
            }
            for i, (window, (text, _)) in enumerate(zip(windows, rows, strict=True))
        ]

    def merge(self, parts: Sequence[Any], row: TextPair) -> Answer:
        """Tag every word by the first window that holds it; words that the tokenizer drops are outside."""
        outside = self.labels.index(OUTSIDE) if OUTSIDE in self.labels else 0
        tagged: dict[int, tuple[int, float]] = {}
        for part in parts:
            tagged = {**part, **tagged}
        words = len(word_spans(row[0]))
        tags = [self.labels[tagged[word][0] if word in tagged else outside] for word in range(words)]
        logs = [math.log(max(chance, 1e-12)) for _, chance in tagged.values()]
        score = math.exp(sum(logs) / len(logs)) if logs else None
        return Answer("tags", tags, score)

    def choices(self, logits: Tensor, mask: Tensor, windows: Sequence[Window], rows: Sequence[TextPair]) -> Tensor:
        """Return the logits of every token that is no padding: each is a choice among the tags."""
        return logits[mask.bool()]


def first_subwords(window: Window, text: str) -> dict[int, int]:
    """Map each word of ``text`` that begins in this window to the position of its first subword."""
    positions: dict[int, int] = {}
    spans = word_spans(text)
    word = 0
    for position, ((begin, end), sequence) in enumerate(
        zip(window.encoding.offsets, window.encoding.sequence_ids, strict=True)
    ):
        if sequence != 0 or begin == end:
            continue
        while word < len(spans) and spans[word][1] <= begin:
            word += 1
        if word < len(spans) and begin <= spans[word][0] < end:
            positions.setdefault(word, position)
    return positions
