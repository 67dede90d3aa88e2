"""Heads: hidden states in, a loss or an answer out.

Heads that read a text answer from its hidden states: a row may be read in several windows; ``parts`` decodes each
window and ``merge`` makes one answer of a row's parts. Heads that write are in ``lm_heads``.

Letters: B windows, S positions, D width, C classes, T tags.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dynamorouter.errors import ConfigError
from dynamorouter.model.text.examples import TrainingExample
from dynamorouter.model.text.tokenize import TextPair, Window
from dynamorouter.registry import Registry
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task

if TYPE_CHECKING:
    from dynamorouter.model.base.base import Base

WindowTarget = np.ndarray[Any, np.dtype[np.int64]]
"""What one window is trained on; its meaning is the head's own."""


class Head(nn.Module, ABC):
    """Base of all heads.

    Args:
        width: D.
        labels: names of the outputs, in order.
        options: settings that are stored with the head and given back to its constructor.
    """

    kind: str

    def __init__(self, width: int, labels: Sequence[str], **options: Any) -> None:
        super().__init__()
        self.width = width
        self.labels = tuple(labels)
        self.options = options

    def attach(self, base: Base) -> None:
        """Take note of the base that the head sits on.

        Raises:
            ConfigError: it does not go with this kind of head.
        """

    @abstractmethod
    def examples(
        self, base: Base, task: Task, records: Sequence[Record], *, max_tokens: int
    ) -> Iterator[TrainingExample]:
        """Yield what there is to learn from records, as the base's tokens.

        Args:
            base: that the head sits on.
            task: whose rows they are.
            records: the rows.
            max_tokens: longest window, or longest prompt.
        """

    @abstractmethod
    def units(self, target: WindowTarget) -> int:
        """Count the terms of the loss that an example contributes; a task's loss is the mean over them."""

    @abstractmethod
    def loss(self, hidden: Tensor, mask: Tensor, targets: Sequence[WindowTarget]) -> Tensor:
        """Return each example's summed loss ``(B,)`` from hidden states ``(B, S, D)`` and the mask ``(B, S)``."""

    def initialise(self, generator: torch.Generator) -> Head:
        """Draw linear layers as BERT does, N(0, 0.02), biases zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                with torch.no_grad():
                    module.weight.normal_(0.0, 0.02, generator=generator)
                    module.bias.zero_()
        return self


class EncoderHead(Head):
    """Base of the heads that answer from a text's own hidden states."""

    @abstractmethod
    def target(self, window: Window, record: Record) -> WindowTarget | None:
        """Return what this window is trained on, or ``None`` when it teaches nothing."""

    def examples(
        self, base: Base, task: Task, records: Sequence[Record], *, max_tokens: int
    ) -> Iterator[TrainingExample]:
        """Yield the windows that teach something.

        Raises:
            ConfigError: the base is an encoder-decoder.
        """
        if base.kind == "seq2seq":
            raise ConfigError(
                f"a {self.kind} head reads hidden states of an encoder or a decoder, but base {base.spec.name!r} is an "
                f"encoder-decoder; name another base for task {task.name!r}"
            )
        rows = [(record.text, record.pair) for record in records]
        for window in base.encoder.windows(rows, max_tokens=max_tokens, stride=task.stride):
            target = self.target(window, records[window.row])
            if target is not None:
                tokens, units = window.encoding, self.units(target)
                yield TrainingExample.of(window.row, tokens.ids, target, units=units, types=tokens.type_ids)

    @abstractmethod
    def parts(self, hidden: Tensor, mask: Tensor, windows: Sequence[Window], rows: Sequence[TextPair]) -> list[Any]:
        """Decode each window from ``(B, S, D)``; ``rows[i]`` is the text of ``windows[i]``."""

    @abstractmethod
    def merge(self, parts: Sequence[Any], row: TextPair) -> Answer:
        """Make one answer of the parts of a row, given in order."""


heads: Registry[type[Head]] = Registry(
    "head", "dynamorouter.model.heads", group="heads", contract="dynamorouter.model.heads.base:Head"
)


def build_head(task: Task, width: int, options: Mapping[str, Any] | None = None) -> Head:
    """Build the head that a task names, with its labels and options."""
    return heads.get(task.head)(width, task.labels, **(options or {}))
