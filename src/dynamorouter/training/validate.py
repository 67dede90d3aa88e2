"""Held-out rows of a task: what an expert answers to them, and how good it is.

Letters: B batch, S positions, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch

from dynamorouter.inference.decode import RowDecoder
from dynamorouter.inference.writing import GenerationBatch, generate_answers
from dynamorouter.metrics.base import get_metric, score
from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.base import EncoderHead, Head, build_head
from dynamorouter.model.lora.gates import RowGate
from dynamorouter.model.text.examples import TrainingExample, make_examples
from dynamorouter.model.text.passes import ExamplePasses, Gates
from dynamorouter.model.text.tokenize import Window
from dynamorouter.model.text.trunk_cache import CacheOptions, TrunkCache
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.kinds import head_kind
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task

SelectBy = Literal["loss", "metric"]


class Validator:
    """Scores an expert on held-out rows of its task; the trunk's outputs for them are computed once.

    Args:
        base: the base.
        task: the task.
        records: held-out rows.
        depth: the trunk's depth.
        budget: most tokens in a pass.
        cache: where the trunk's outputs are kept.
        select_by: what the score of a generative task is made of.
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
        self.base, self.task, self.records = base, task, records
        self.rows = [(record.text, record.pair) for record in records]
        self.is_generative = head_kind(task.head).is_generative
        self.by_loss = self.is_generative and select_by == "loss"
        self.budget = budget
        self._windows: list[Window] = []
        if self.is_generative:
            self._text_head = build_head(task, base.width)
            examples = make_examples(base, self._text_head, task, records, expert=0)
        else:
            self._windows = base.encoder.windows(self.rows, max_tokens=task.max_tokens, stride=task.stride)
            examples = [TrainingExample.unlabelled(window) for window in self._windows]
        file = cache.folder / f"{task.name}.validation" if cache.folder else None
        self.cache = TrunkCache(base, examples, depth=depth, limit=cache.limit, budget=budget, file=file)
        self.cache.fill()
        self._passes = ExamplePasses(base, examples, budget=budget, trunk=self.cache)

    @torch.inference_mode()
    def answers(self, head: Head, expert: int, *, gates: Gates | None = None) -> list[Answer]:
        """Return the answer to every held-out row of an expert, or of what ``gates`` makes of each batch."""
        gates = gates or self._alone(expert)
        return self._generated(gates) if self.is_generative else self._decoded(head, [gates])

    @torch.inference_mode()
    def ensemble(self, head: Head, experts: int) -> list[Answer]:
        """Return the answer to every held-out row from the mean of the states that each of the first experts makes."""
        return self._decoded(head, [self._alone(expert) for expert in range(experts)])

    @torch.inference_mode()
    def __call__(self, head: Head, expert: int, *, gates: Gates | None = None) -> float:
        """Return the primary metric, or the loss, turned round where less of it is better."""
        if self.by_loss:
            losses = self._passes.losses(self._text_head, gates or self._alone(expert))
            return -sum(loss for loss, _ in losses) / sum(tokens for _, tokens in losses)
        primary = self.task.metrics[0]
        value = score(self.task, self.answers(head, expert, gates=gates), self.records, metrics=[primary])[primary]
        return value if get_metric(primary).higher_is_better else -value

    def _alone(self, expert: int) -> Gates:
        return lambda positions: RowGate(torch.full((len(positions),), expert, device=self.base.device))

    def _decoded(self, head: Head, gates: Sequence[Gates]) -> list[Answer]:
        """Answer every row from the hidden states of its windows, their mean over the gates."""
        assert isinstance(head, EncoderHead)
        decoder = RowDecoder(self.rows, [head] * len(self.rows))
        for runs in zip(*(self._passes.run(gate) for gate in gates), strict=True):
            batch, _, mask = runs[0]
            hidden = torch.stack([hidden for _, hidden, _ in runs]).mean(dim=0)
            windows = [self._windows[i] for i in batch.positions]
            decoder.add(hidden, mask, [(window.row, window) for window in windows])
        return [answer for answer in decoder.answers() if answer is not None]

    def _generated(self, gates: Gates) -> list[Answer]:
        """Generate an answer to every row, where a metric reads it, with the loss of the target text."""
        if all(get_metric(name).reads_loss for name in self.task.metrics):
            texts = dict.fromkeys(range(len(self.rows)), Answer("text", "", 0.0))
        else:
            rows = dict(enumerate(self.rows))
            batch = GenerationBatch(self.base, rows, dict.fromkeys(rows, self.task), gates)
            texts = generate_answers(batch, budget=self.budget)
        losses = self._passes.losses(self._text_head, gates)
        return [dataclasses.replace(texts[i], nll=nll, tokens=tokens) for i, (nll, tokens) in enumerate(losses)]
