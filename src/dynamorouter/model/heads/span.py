"""The span of a context that answers a question (Rajpurkar et al., 2016).

Letters: B windows, S positions, D width.
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
from dynamorouter.model.heads.base import EncoderHead, WindowTarget, heads, take_linear
from dynamorouter.model.text.tokenize import TextPair, Window
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.record import Record

if TYPE_CHECKING:
    from dynamorouter.model.base.base import Base
    from dynamorouter.tasks.task import Task

NEVER = -1e9
"""The logit of a token that is not of the context."""


@heads.register("span")
class SpanHead(EncoderHead):
    """The span of the context (or of the text, where there is none) that answers a question (SQuAD v1.1).

    Where a task's questions may be left open (SQuAD 2.0; Devlin et al., 2019), the first token stands for no answer.

    Args:
        max_answer: longest answer, in tokens.
    """

    kind = "span"
    has_choices = True

    def __init__(self, width: int, labels: Sequence[str] = (), *, max_answer: int = 30, dropout: float = 0.0) -> None:
        super().__init__(width, labels, max_answer=max_answer, dropout=dropout)
        self.max_answer = max_answer
        self.null_threshold: float | None = None
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, 2)

    @classmethod
    def import_state(cls, tensors: dict[str, Tensor], base: Base) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Take up the only layer of a question answerer."""
        return {}, take_linear(tensors, "qa_outputs", "out")

    def export_state(self, base: Base) -> dict[str, Tensor]:
        """Return the weights as the base's question answerer has them."""
        return {f"qa_outputs.{leaf}": value for leaf, value in self.out.state_dict().items()}

    def use_task(self, task: Task) -> None:
        """Take note of whether a question may be left open, and when it is."""
        self.null_threshold = task.null_threshold

    @property
    def is_linear(self) -> bool:
        """Always: there is one layer."""
        return True

    def logits(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return ``(B, S, 2)`` in float32: of each token as the first and as the last of the answer."""
        return self.out(self.dropout(hidden.float()))  # type: ignore[no-any-return]

    def target(self, window: Window, record: Record) -> WindowTarget | None:
        """Return the first answer's first and last token, or the first token twice where the window lacks it."""
        if not isinstance(record.target, dict):
            raise DataError(f"row {record.id!r}: the target of a span task is texts and starts, not {record.target!r}")
        if not record.target["texts"]:
            return np.array([0, 0])
        start = int(record.target["starts"][0])
        end = start + len(str(record.target["texts"][0]))
        inside = [
            position
            for position, (begin, stop) in enumerate(window.encoding.offsets)
            if window.encoding.sequence_ids[position] == 1 and begin < end and stop > start and stop > begin
        ]
        if not inside:
            return np.array([0, 0])
        begins, stops = window.encoding.offsets[inside[0]][0], window.encoding.offsets[inside[-1]][1]
        contains_answer = begins <= start and stops >= end
        return np.array([inside[0], inside[-1]] if contains_answer else [0, 0])

    def units(self, target: WindowTarget) -> int:
        """One per window."""
        return 1

    def loss(self, hidden: Tensor, mask: Tensor, targets: Sequence[WindowTarget]) -> Tensor:
        """Mean of the cross-entropies of the first and the last token."""
        start, end = self.logits(hidden, mask).masked_fill(~mask.bool()[..., None], NEVER).unbind(dim=-1)
        gold = torch.as_tensor(np.stack(list(targets)), device=hidden.device)
        first = functional.cross_entropy(start, gold[:, 0], reduction="none")
        return (first + functional.cross_entropy(end, gold[:, 1], reduction="none")) / 2

    def parts(self, logits: Tensor, windows: Sequence[Window], rows: Sequence[TextPair]) -> list[Any]:
        """Return (logit, probability, first and last character) of each window's best span, and no answer's logit."""
        start, end = _of_context(logits, windows, rows).unbind(dim=-1)
        size = logits.shape[1]
        band = torch.ones(size, size, dtype=torch.bool, device=logits.device).triu().tril(self.max_answer - 1)
        scores = (start[:, :, None] + end[:, None, :]).masked_fill(~band, -torch.inf).flatten(1)
        best = scores.argmax(dim=1)
        first, last = best // size, best % size
        row = torch.arange(len(windows), device=logits.device)
        chance = start.softmax(dim=1)[row, first] * end.softmax(dim=1)[row, last]
        columns = (scores[row, best], chance, first, last, logits[:, 0].sum(dim=-1))
        return [
            (logit, probability, window.encoding.offsets[int(begin)][0], window.encoding.offsets[int(stop)][1], null)
            for window, logit, probability, begin, stop, null in zip(
                windows, *(c.tolist() for c in columns), strict=True
            )
        ]

    def merge(self, parts: Sequence[Any], row: TextPair) -> Answer:
        """Take the span with the highest logits of all windows, or none where every window has none more likely."""
        logit, chance, begin, stop, _ = max(parts)
        lead = min(null for *_, null in parts) - logit
        if self.null_threshold is not None and lead > self.null_threshold:
            return Answer("span", "", (1.0 + math.tanh(lead / 2)) / 2)
        source = row[0] if row[1] is None else row[1]
        return Answer("span", source[begin:stop], chance)

    def choices(self, logits: Tensor, mask: Tensor, windows: Sequence[Window], rows: Sequence[TextPair]) -> Tensor:
        """Return the logits of first and last token ``(2 B, S)``: each is a choice among the tokens of the context."""
        return _of_context(logits, windows, rows).transpose(1, 2).flatten(0, 1)


def _of_context(logits: Tensor, windows: Sequence[Window], rows: Sequence[TextPair]) -> Tensor:
    """Return logits ``(B, S, 2)`` with ``NEVER`` at all tokens but those of the context, or of the only text."""
    allowed = np.zeros(logits.shape[:2], dtype=bool)
    for i, (window, (_, pair)) in enumerate(zip(windows, rows, strict=True)):
        sequence = 0 if pair is None else 1
        allowed[i, : len(window)] = [sequence_id == sequence for sequence_id in window.encoding.sequence_ids]
    return logits.masked_fill(~torch.as_tensor(allowed, device=logits.device)[..., None], NEVER)
