"""Records as training examples.

Letters: S positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dynamorouter.errors import DataError
from dynamorouter.model.text.tokenize import Batch
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task

if TYPE_CHECKING:
    from dynamorouter.model.base.base import Base
    from dynamorouter.model.text.tokenize import Window

TOKENIZED_ROWS = 2048
"""Rows that are tokenized at once; the tokenizer's own records are large, so they are not kept longer."""


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """Some tokens, and what a head learns from them.

    Attributes:
        row: index of the record that they come from, in the list that the head was given.
        ids: token ids ``(S,)``.
        types: segment ids ``(S,)``.
        target: in the head's own form.
        units: terms that it adds to the loss.
        cut: tokens of the record that were left out: of the prompt, and of the target text.
        expert: index of the expert that learns from it.
    """

    row: int
    ids: NDArray[np.int32]
    types: NDArray[np.int8]
    target: NDArray[np.int64]
    units: int
    cut: tuple[int, int] = (0, 0)
    expert: int = 0

    @staticmethod
    def of(
        row: int,
        ids: Sequence[int],
        target: NDArray[np.int64],
        *,
        units: int,
        types: Sequence[int] | None = None,
        cut: tuple[int, int] = (0, 0),
    ) -> TrainingExample:
        """Take up what a tokenizer returned; without ``types`` all tokens are of segment 0."""
        tokens = np.array(ids, dtype=np.int32)
        segments = np.zeros(len(ids), dtype=np.int8) if types is None else np.array(types, dtype=np.int8)
        return TrainingExample(row, tokens, segments, target, units, cut)

    @staticmethod
    def unlabelled(window: Window) -> TrainingExample:
        """Take up a window of a row that is answered, and teaches nothing."""
        encoding = window.encoding
        return TrainingExample.of(window.row, encoding.ids, np.empty(0, np.int64), units=0, types=encoding.type_ids)

    def __len__(self) -> int:
        return len(self.ids)


class ExampleMaker(Protocol):
    """What turns records into examples, such as a ``Head``."""

    def examples(
        self, base: Base, task: Task, records: Sequence[Record], *, max_tokens: int
    ) -> Iterator[TrainingExample]:
        """Yield what there is to learn from records, as the base's tokens."""
        ...


def make_examples(
    base: Base, head: ExampleMaker, task: Task, records: Sequence[Record], *, expert: int, max_tokens: int | None = None
) -> list[TrainingExample]:
    """Turn records into what the head learns from: windows, or prompts with the target text.

    Raises:
        DataError: nothing is left to learn from.
    """
    examples = [
        replace(example, row=first + example.row, expert=expert)
        for first in range(0, len(records), TOKENIZED_ROWS)
        for example in head.examples(
            base, task, records[first : first + TOKENIZED_ROWS], max_tokens=max_tokens or task.max_tokens
        )
    ]
    if not examples:
        raise DataError(f"task {task.name!r} has no rows to train on; give more rows or loosen the filters")
    return examples


def writing_report(base: Base, head: ExampleMaker, task: Task, records: Sequence[Record]) -> dict[str, Any]:
    """Return how long prompts and texts of a generative task are in tokens, and how many were cut.

    The counts are of rows, but for those that say tokens; ``quantiles`` are of prompt and text together.
    """
    if not records:
        raise DataError(f"task {task.name!r}: no rows to measure; prepare the data first")
    examples = make_examples(base, head, task, records, expert=0)
    lengths = sorted(len(example) for example in examples)
    quantiles = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {
        "task": task.name,
        "rows": len(examples),
        "max_tokens": task.max_tokens,
        "max_new_tokens": task.generation.max_new_tokens,
        "truncated": sum(any(example.cut) for example in examples) / len(examples),
        "prompts_cut": sum(example.cut[0] > 0 for example in examples),
        "prompt_tokens_cut": sum(example.cut[0] for example in examples),
        "texts_cut": sum(example.cut[1] > 0 for example in examples),
        "text_tokens_cut": sum(example.cut[1] for example in examples),
        "quantiles": {name: lengths[math.ceil(share * len(lengths)) - 1] for name, share in quantiles.items()},
    }


def batch_of(base: Base, examples: Sequence[TrainingExample]) -> Batch:
    """Pad examples to a batch on the base's device."""
    return base.encoder.pad([e.ids for e in examples], [e.types for e in examples], base.device)
