"""Experts of another base than the router's, as the joint phase sees them: rows to route, nothing to learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.base import Head, WindowTarget
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.text.examples import TrainingExample
from dynamorouter.model.text.prompts import prompt_windows
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task


class NullHead(Head):
    """The head of a task whose expert has another base: its rows teach the router alone.

    Args:
        width: D of the router's base.
        kind: that of the expert's own head.
    """

    def __init__(self, width: int, kind: str) -> None:
        super().__init__(width, ())
        self.kind = kind

    def examples(
        self, base: Base, task: Task, records: Sequence[Record], *, max_tokens: int
    ) -> Iterator[TrainingExample]:
        """Yield what a router reads of each row."""
        rows = [(record.text, record.pair) for record in records]
        for window in prompt_windows(base, rows, max_tokens=max_tokens, stride=task.stride):
            if window.part == 0:
                nothing = np.empty(0, dtype=np.int64)
                tokens = window.encoding
                yield TrainingExample.of(window.row, tokens.ids, nothing, units=1, types=tokens.type_ids)

    def logits(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """No outputs: ``(B, 0)``."""
        return hidden.new_zeros((hidden.shape[0], 0), dtype=torch.float32)

    def units(self, target: WindowTarget) -> int:
        """One per row."""
        return 1

    def loss(self, hidden: Tensor, mask: Tensor, targets: Sequence[WindowTarget]) -> Tensor:
        """Nothing, whatever the states are."""
        return hidden.new_zeros(len(targets), dtype=torch.float32)


def placeholder(expert: Expert, base: Base) -> Expert:
    """Return what holds the place of an expert on the router's base: no factors, and a head without a loss."""
    head = NullHead(base.width, expert.head.kind)
    return Expert(expert.name, expert.task, base.spec.name, {}, head, expert.lora)
