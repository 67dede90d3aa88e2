"""Records as training examples, and the trunk's outputs for them, computed once.

Letters: N examples, S positions, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamorouter.errors import DataError
from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.base import Head, WindowTarget
from dynamorouter.model.text.tokenize import Batch
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task


@dataclass(frozen=True, slots=True)
class Example:
    """One window to be trained on.

    Attributes:
        expert: index of the expert that learns from it.
        ids: token ids ``(S,)``.
        types: segment ids ``(S,)``.
        target: in the head's own form.
        units: terms of the loss.
        row: index of the record it comes from, in its task's list.
    """

    expert: int
    ids: NDArray[np.int32]
    types: NDArray[np.int8]
    target: WindowTarget
    units: int
    row: int

    def __len__(self) -> int:
        return len(self.ids)


def make_examples(
    base: Base, head: Head, task: Task, records: Sequence[Record], *, expert: int, max_tokens: int | None = None
) -> list[Example]:
    """Turn records into what the head learns from: windows, or prompts with the text to be written.

    Raises:
        DataError: nothing is left to learn from.
    """
    size = max_tokens or task.max_tokens
    examples = []
    for first in range(0, len(records), 2048):  # the tokenizer's own records are large: do not keep them
        part = records[first : first + 2048]
        for lesson in head.lessons(base, task, part, max_tokens=size):
            ids = np.array(lesson.ids, dtype=np.int32)
            types = np.array(lesson.types, dtype=np.int8)
            units = head.units(lesson.target)
            examples.append(Example(expert, ids, types, lesson.target, units, first + lesson.row))
    if not examples:
        raise DataError(f"task {task.name!r} has no rows to train on; give more rows or loosen the filters")
    return examples


def writing_report(base: Base, head: Head, task: Task, records: Sequence[Record]) -> dict[str, Any]:
    """Return how long prompts and texts of a task that writes are in tokens, and how many were cut.

    The counts are of rows, but for those that say tokens; ``quantiles`` are of prompt and text together.
    """
    lessons = [
        lesson
        for first in range(0, len(records), 2048)
        for lesson in head.lessons(base, task, records[first : first + 2048], max_tokens=task.max_tokens)
    ]
    if not lessons:
        raise DataError(f"task {task.name!r}: no rows to measure; prepare the data first")
    lengths = sorted(len(lesson.ids) for lesson in lessons)
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {
        "task": task.name,
        "rows": len(lessons),
        "max_tokens": task.max_tokens,
        "max_new_tokens": task.generation.max_new_tokens,
        "truncated": sum(any(lesson.cut) for lesson in lessons) / len(lessons),
        "prompts_cut": sum(lesson.cut[0] > 0 for lesson in lessons),
        "prompt_tokens_cut": sum(lesson.cut[0] for lesson in lessons),
        "texts_cut": sum(lesson.cut[1] > 0 for lesson in lessons),
        "text_tokens_cut": sum(lesson.cut[1] for lesson in lessons),
        "quantiles": {name: lengths[math.ceil(share * len(lengths)) - 1] for name, share in at.items()},
    }


def batch_of(base: Base, examples: Sequence[Example]) -> Batch:
    """Pad examples to a batch on the base's device."""
    return base.encoder.pad([e.ids for e in examples], [e.types for e in examples], base.device)
