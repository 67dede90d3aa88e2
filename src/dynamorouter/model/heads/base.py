"""Heads: hidden states in, a loss or an answer out.

A head's half without tensors, its ``HeadKind``, is registered in ``dynamorouter.tasks.kinds`` under the same name.

An ``EncoderHead`` answers from a text's own hidden states in three steps: ``logits`` is all tensor work and can be
exported; a row may be read in several windows, and ``parts`` decodes the logits of each; ``merge`` makes one answer of
a row's parts. Heads that generate a text token by token are in ``language``.

Letters: B windows, S positions, D width, C classes, T tags.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

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
    from dynamorouter.model.base.config import BaseSpec

WindowTarget = np.ndarray[Any, np.dtype[np.int64]]
"""What one window is trained on; its meaning is the head's own."""


class Head(nn.Module, ABC):
    """Base of all heads.

    Args:
        width: D.
        labels: names of the outputs, in order.
        options: settings that are stored with the head and given back to its constructor.

    Attributes:
        kind: the name that it is registered under.
        is_generative: whether it answers with a text that is generated token by token.
        appends_target: whether its examples hold the target's tokens after the prompt; a target then begins with the
            prompt's length.
        output_layer: name of the layer whose outputs are the labels, one each, where there is such a layer.
    """

    kind: str
    is_generative: ClassVar[bool] = False
    appends_target: ClassVar[bool] = False
    output_layer: ClassVar[str | None] = None

    def __init__(self, width: int, labels: Sequence[str], **options: Any) -> None:
        super().__init__()
        self.width = width
        self.labels = tuple(labels)
        self.options = options

    @classmethod
    def base_options(cls, base: BaseSpec) -> dict[str, Any]:
        """Return the options of a new head that the settings of its base decide."""
        return {}

    @classmethod
    def import_state(cls, tensors: dict[str, Tensor], base: Base) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Make options and weights of the head that a ``transformers`` task model was trained with.

        Args:
            tensors: what the task model calls its head's weights; those that are understood are taken out.
            base: the head's base model.

        Returns:
            Options for the constructor, and its ``state_dict``; both empty where there is no such task model.
        """
        return {}, {}

    def export_state(self, base: Base) -> dict[str, Tensor] | None:
        """Return the head's weights as the base's task model in ``transformers`` calls them, without its body's name.

        The reverse of ``import_state``; ``None`` where no task model computes the same.
        """
        return None

    def use_task(self, task: Task) -> None:
        """Take note of what else the task says of its answers."""

    def attach(self, base: Base) -> None:
        """Take note of the head's base model.

        Raises:
            ConfigError: it does not go with this kind of head.
        """

    @abstractmethod
    def examples(
        self, base: Base, task: Task, records: Sequence[Record], *, max_tokens: int
    ) -> Iterator[TrainingExample]:
        """Yield what there is to learn from records, as the base's tokens.

        Args:
            base: the head's base model.
            task: whose rows they are.
            records: the rows.
            max_tokens: longest window, or longest prompt.
        """

    @abstractmethod
    def logits(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return the outputs before any softmax, float32, from hidden states ``(B, S, D)`` and the mask ``(B, S)``."""

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
                    if module.bias is not None:
                        module.bias.zero_()
        return self


class EncoderHead(Head):
    """Base of the heads that answer from a text's own hidden states.

    Attributes:
        has_choices: whether it chooses among classes, tags or positions, so that there are ``choices``.
    """

    has_choices: ClassVar[bool] = False

    @property
    def is_linear(self) -> bool:
        """Whether the mean of several logits is the logits of the mean hidden states."""
        return False

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
    def parts(self, logits: Tensor, windows: Sequence[Window], rows: Sequence[TextPair]) -> list[Any]:
        """Decode the logits of each window, ``(B, ...)``; ``rows[i]`` is the text of ``windows[i]``."""

    @abstractmethod
    def merge(self, parts: Sequence[Any], row: TextPair) -> Answer:
        """Make one answer of the parts of a row, given in order."""

    def choices(self, logits: Tensor, mask: Tensor, windows: Sequence[Window], rows: Sequence[TextPair]) -> Tensor:
        """Return the logits of each choice ``(N, C)``; those of what cannot be chosen are about minus infinity.

        Raises:
            NotImplementedError: the head does not choose (``has_choices``).
        """
        raise NotImplementedError(f"a {self.kind} head does not choose among a fixed set; see has_choices")


def take_linear(tensors: dict[str, Tensor], prefix: str, name: str) -> dict[str, Tensor]:
    """Take the weight and bias under a prefix out of ``tensors``, under another name."""
    by_leaf = {leaf: tensors.pop(f"{prefix}.{leaf}", None) for leaf in ("weight", "bias")}
    return {f"{name}.{leaf}": value for leaf, value in by_leaf.items() if value is not None}


heads: Registry[type[Head]] = Registry(
    "head", "dynamorouter.model.heads", group="heads", contract="dynamorouter.model.heads.base:Head"
)


def build_head(task: Task, width: int, options: Mapping[str, Any] | None = None) -> Head:
    """Build the head that a task names, with its labels and options."""
    head = heads.get(task.head)(width, task.labels, **(options or {}))
    head.use_task(task)
    return head


def choosing_heads() -> list[str]:
    """Return the names of the heads that choose among classes, tags or positions."""
    return [name for name, head in heads.items() if issubclass(head, EncoderHead) and head.has_choices]
