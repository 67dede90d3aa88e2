"""Outputs of the trunk, kept between epochs.

Letters: S positions, D width.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dynamorouter.model.base.base import Base
from dynamorouter.model.text.batching import token_batches
from dynamorouter.model.text.examples import TrainingExample, batch_of


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
        examples: Sequence[TrainingExample],
        *,
        depth: int,
        limit: int,
        budget: int,
        file: Path | None = None,
        compute: Callable[[Sequence[TrainingExample]], Tensor] | None = None,
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
        uncached = [row for row, i in enumerate(positions) if i >= self.kept]
        for row, i in enumerate(positions):
            if i < self.kept:
                hidden[row, : len(self.examples[i])] = self._slot(i)
        hidden = hidden.to(self.base.device)
        if uncached:
            with torch.no_grad():
                computed = self._compute([self.examples[positions[row]] for row in uncached])
            for row, states in zip(uncached, computed, strict=True):
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

    def _trunk(self, examples: Sequence[TrainingExample]) -> Tensor:
        return self.base.forward_to(batch_of(self.base, examples), self.depth)[self.depth]


@dataclasses.dataclass(frozen=True, slots=True)
class CacheOptions:
    """Where the trunk's outputs are kept.

    Attributes:
        limit: most bytes; 0 keeps nothing.
        folder: keep them in files in this folder rather than in memory.
    """

    limit: int = 2 << 30
    folder: Path | None = None
