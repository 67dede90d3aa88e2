"""Records as training examples, and the trunk's outputs for them, computed once.

Letters: N examples, S positions, D width.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynamorouter.data.records import Record
from dynamorouter.errors import DataError
from dynamorouter.model.base import Base
from dynamorouter.model.encode import Batch
from dynamorouter.model.heads import Head, WindowTarget
from dynamorouter.model.passes import token_batches
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


class TrunkCache:
    """The trunk's outputs of a fixed list of examples, computed once and kept within a byte limit.

    What does not fit is computed anew whenever it is asked for.

    Args:
        base: the base.
        examples: what will be asked for, by position.
        depth: the trunk's depth; 0 caches nothing, since there is no trunk.
        limit: most bytes to keep.
        file: keep them in this file instead of in memory.
        compute: returns what is kept of some examples ``(B, S, D)``; the trunk's outputs by default.
    """

    def __init__(
        self,
        base: Base,
        examples: Sequence[Example],
        *,
        depth: int,
        limit: int,
        budget: int,
        file: Path | None = None,
        compute: Callable[[Sequence[Example]], Tensor] | None = None,
    ) -> None:
        self.base = base
        self._compute = compute or self._trunk
        self.depth = depth
        self.examples = examples
        self.budget = budget
        self.file = file
        size = torch.empty((), dtype=base.dtype).element_size()
        lengths = np.array([len(example) for example in examples], dtype=np.int64)
        ends = np.cumsum(lengths)
        self.kept = int(np.searchsorted(ends * base.width * size, limit, side="right")) if depth else 0
        self.bytes = int(ends[self.kept - 1]) * base.width * size if self.kept else 0
        self._ends = ends
        self._store = self._allocate(int(ends[self.kept - 1]) if self.kept else 0)

    def _allocate(self, positions: int) -> Tensor:
        shape = (positions, self.base.width)
        if self.file is None or positions == 0:
            return torch.empty(shape, dtype=self.base.dtype)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        numbers = positions * self.base.width
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and would kill the process later
            with self.file.open("wb") as handle:
                os.posix_fallocate(handle.fileno(), 0, numbers * torch.empty((), dtype=self.base.dtype).element_size())
        flat = torch.from_file(str(self.file), shared=True, size=numbers, dtype=self.base.dtype)
        return flat.view(shape)

    def fill(self) -> int:
        """Compute what is kept; returns the number of tokens. The same examples give the same bits every time."""
        with torch.inference_mode():
            for group in token_batches([len(e) for e in self.examples[: self.kept]], budget=self.budget):
                hidden = self._compute([self.examples[i] for i in group])
                for row, i in enumerate(group):
                    self._slot(i).copy_(hidden[row, : len(self.examples[i])])
        return int(self._ends[self.kept - 1]) if self.kept else 0

    def fetch(self, positions: Sequence[int], width: int) -> Tensor:
        """Return the trunk's outputs of some examples, padded to ``width`` positions: ``(B, S, D)``."""
        hidden = torch.zeros(len(positions), width, self.base.width, dtype=self.base.dtype)
        missing = [row for row, i in enumerate(positions) if i >= self.kept]
        for row, i in enumerate(positions):
            if i < self.kept:
                hidden[row, : len(self.examples[i])] = self._slot(i)
        hidden = hidden.to(self.base.device)
        if missing:
            with torch.no_grad():
                fresh = self._compute([self.examples[positions[row]] for row in missing])
            for row, states in zip(missing, fresh, strict=True):
                length = len(self.examples[positions[row]])
                hidden[row, :length] = states[:length]
        return hidden

    def close(self) -> None:
        """Free the memory or the file."""
        self._store = torch.empty(0)
        self.kept = 0
        if self.file is not None:
            self.file.unlink(missing_ok=True)

    def _slot(self, i: int) -> Tensor:
        end = int(self._ends[i])
        return self._store[end - len(self.examples[i]) : end]

    def _trunk(self, examples: Sequence[Example]) -> Tensor:
        return self.base.trunk(batch_of(self.base, examples), self.depth)[self.depth]
