"""Held-out rows of a task: what an expert answers to them, and how good it is.

Letters: B batch, S positions, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dynamorouter.inference.decode import decode
from dynamorouter.inference.writing import write
from dynamorouter.metrics.base import get_metric, score
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.gate import Gate
from dynamorouter.model.heads.base import EncoderHead, Head, build_head
from dynamorouter.model.lora.gates import RowGate
from dynamorouter.model.text.batching import token_batches
from dynamorouter.model.text.examples import TrainingExample, make_examples
from dynamorouter.model.text.packing import Layout, last_states
from dynamorouter.model.text.tokenize import Window
from dynamorouter.model.text.trunk_cache import CacheOptions, TrunkCache
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.kinds import head_kind
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task

SelectBy = Literal["loss", "metric"]
Gates = Callable[[int], Gate]
"""Makes the gate of a batch of so many rows."""


class Validator:
    """Scores an expert on held-out rows of its task; the trunk's outputs for them are computed once.

    Args:
        base: the base.
        task: the task.
        records: held-out rows.
        depth: the trunk's depth.
        budget: most tokens in a pass.
        cache: where the trunk's outputs are kept.
        select_by: what the score of a task whose head writes is made of.
    """

    def __init__(
        self,
        base: Base,
        task: Task,
        records: Sequence[Record],
        *,
        depth: int,
        budget: int,
        cache: CacheOptions,
        select_by: SelectBy = "metric",
    ) -> None:
        self.task, self.records = task, records
        file = cache.folder / f"{task.name}.validation" if cache.folder else None
        is_generative = head_kind(task.head).is_generative
        self.by_loss = is_generative and select_by == "loss"

        def hold(examples: Sequence[TrainingExample]) -> _Passes:
            return _Passes(base, examples, depth=depth, budget=budget, limit=cache.limit, file=file)

        self._held = (_Writing if is_generative else _Reading)(base, task, records, hold)
        self.cache = self._held.passes.cache

    @torch.inference_mode()
    def answers(self, head: Head, expert: int, *, gates: Gates | None = None) -> list[Answer]:
        """Return the answer to every held-out row of an expert, or of what ``gates`` makes of each batch."""
        return self._held.answers(head, gates or self._own(expert))

    @torch.inference_mode()
    def __call__(self, head: Head, expert: int, *, gates: Gates | None = None) -> float:
        """Return the headline metric, or the loss, turned round where less of it is better."""
        gates = gates or self._own(expert)
        if self.by_loss and isinstance(self._held, _Writing):
            losses = self._held.losses(gates)
            return -sum(loss for loss, _ in losses) / sum(tokens for _, tokens in losses)
        headline = self.task.metrics[0]
        found = score(self.task, self._held.answers(head, gates), self.records, metrics=[headline])[headline]
        return found if get_metric(headline).higher_is_better else -found

    def _own(self, expert: int) -> Gates:
        device = self._held.passes.base.device
        return lambda rows: RowGate(torch.full((rows,), expert, device=device))


class _Passes:
    """Held-out examples in batches, from the cached trunk through the gated experts."""

    def __init__(
        self, base: Base, examples: Sequence[TrainingExample], *, depth: int, budget: int, limit: int, file: Path | None
    ) -> None:
        self.base, self.examples, self.budget = base, examples, budget
        self.groups = token_batches([len(example) for example in examples], budget=budget)
        self.cache = TrunkCache(base, examples, depth=depth, limit=limit, budget=budget, file=file)
        self.cache.fill()

    def run(self, gates: Gates) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Yield the places of some examples, their last hidden states ``(B, S, D)`` and the mask ``(B, S)``."""
        depth = self.cache.depth
        for group in self.groups:
            layout = Layout.of(self.examples, [[i] for i in group])
            batch = layout.batch(self.base)
            states = self.cache.fetch(group, batch.mask.shape[1]) if depth else None
            hidden, mask = last_states(self.base, layout, batch, gates(len(group)), states=states, depth=depth)
            yield group, hidden, mask


Hold = Callable[[Sequence[TrainingExample]], _Passes]
"""Makes the passes of examples."""


class _Reading:
    """Held-out rows as windows, answered from their hidden states."""

    def __init__(self, base: Base, task: Task, records: Sequence[Record], hold: Hold) -> None:
        self.rows = [(record.text, record.pair) for record in records]
        self.windows = base.encoder.windows(self.rows, max_tokens=task.max_tokens, stride=task.stride)
        self.passes = hold([_unlabelled(window) for window in self.windows])

    def answers(self, head: Head, gates: Gates) -> list[Answer]:
        """Decode every window, and merge those of each row."""
        assert isinstance(head, EncoderHead)
        parts: list[list[object]] = [[] for _ in self.rows]
        decoded: dict[int, object] = {}
        for group, hidden, mask in self.passes.run(gates):
            windows = [self.windows[i] for i in group]
            rows = [self.rows[w.row] for w in windows]
            decoded.update(zip(group, decode(hidden, mask, windows, rows, [0] * len(group), [head]), strict=True))
        for i, window in enumerate(self.windows):
            parts[window.row].append(decoded[i])
        return [head.merge(part, row) for part, row in zip(parts, self.rows, strict=True)]


class _Writing:
    """Held-out rows as prompts with the text that is wanted."""

    def __init__(self, base: Base, task: Task, records: Sequence[Record], hold: Hold) -> None:
        self.task, self.records = task, records
        self.head = build_head(task, base.width)
        self.passes = hold(make_examples(base, self.head, task, records, expert=0))

    def losses(self, gates: Gates) -> list[tuple[float, int]]:
        """Return each row's summed loss of the wanted text in nats, and its number of tokens."""
        found: dict[int, float] = {}
        examples = self.passes.examples
        for group, hidden, mask in self.passes.run(gates):
            losses = self.head.loss(hidden, mask, [examples[i].target for i in group])
            found.update(zip(group, losses.tolist(), strict=True))
        return [(found[i], example.units) for i, example in enumerate(examples)]

    def answers(self, head: Head, gates: Gates) -> list[Answer]:
        """Write an answer to every row, where a metric reads it, with the loss of the wanted text."""
        if all(get_metric(name).reads_loss for name in self.task.metrics):
            written = [Answer("text", "", 0.0)] * len(self.records)
        else:
            rows = [(record.text, record.pair) for record in self.records]
            written = write(self.passes.base, self.task, rows, gates=gates, budget=self.passes.budget)
        return [
            dataclasses.replace(answer, nll=nll, tokens=tokens)
            for answer, (nll, tokens) in zip(written, self.losses(gates), strict=True)
        ]


def _unlabelled(window: Window) -> TrainingExample:
    nothing = np.empty(0, dtype=np.int64)
    return TrainingExample.of(window.row, window.encoding.ids, nothing, units=0, types=window.encoding.type_ids)
