"""The expert phase: one LoRA expert and head per task, all trained side by side on one frozen base."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from dynamorouter.data.records import Record
from dynamorouter.learn.examples import Example, TrunkCache, batch_of, make_examples
from dynamorouter.learn.loop import Log, LoopOptions, PackedLoop
from dynamorouter.learn.trainee import ExpertPlan, Trainee
from dynamorouter.model.bank import Gate, RowGate
from dynamorouter.model.base import Base
from dynamorouter.model.encode import Window
from dynamorouter.model.expert import Expert, fresh_factors, install_experts, seeded
from dynamorouter.model.heads import Head, build_head
from dynamorouter.model.passes import decode, token_batches
from dynamorouter.tasks.metrics import score
from dynamorouter.tasks.task import Answer, Task


@dataclasses.dataclass(frozen=True, slots=True)
class CacheOptions:
    """Where the trunk's outputs are kept.

    Attributes:
        limit: most bytes; 0 keeps nothing.
        folder: keep them in files in this folder rather than in memory.
    """

    limit: int = 2 << 30
    folder: Path | None = None


Gates = Callable[[int], Gate]
"""Makes the gate of a batch of so many rows."""


class Examiner:
    """Scores an expert on held-out rows of its task; the trunk's outputs for them are computed once.

    Args:
        base: the base.
        task: the task.
        records: held-out rows.
        depth: the trunk's depth.
        budget: most tokens in a pass.
        cache: where the trunk's outputs are kept.
    """

    def __init__(
        self, base: Base, task: Task, records: Sequence[Record], *, depth: int, budget: int, cache: CacheOptions
    ) -> None:
        self.base, self.task, self.records, self.depth = base, task, records, depth
        self.rows = [(record.text, record.pair) for record in records]
        self.windows = base.encoder.windows(self.rows, max_tokens=task.max_tokens, stride=task.stride)
        self.examples = [_unlabelled(window) for window in self.windows]
        self.groups = token_batches([len(w) for w in self.windows], budget=budget)
        file = cache.folder / f"{task.name}.select" if cache.folder else None
        self.cache = TrunkCache(base, self.examples, depth=depth, limit=cache.limit, budget=budget, file=file)
        self.cache.fill()

    @torch.inference_mode()
    def answers(self, head: Head, expert: int, *, gates: Gates | None = None) -> list[Answer]:
        """Return the answer to every held-out row of an expert, or of what ``gates`` makes of each batch."""
        parts: list[list[object]] = [[] for _ in self.rows]
        decoded: dict[int, object] = {}
        for group in self.groups:
            batch = batch_of(self.base, [self.examples[i] for i in group])
            gate = gates(len(group)) if gates else RowGate(torch.full((len(group),), expert, device=self.base.device))
            if self.depth:
                hidden = self.cache.fetch(group, batch.mask.shape[1])
                hidden = self.base.finish(hidden, batch.mask, gate, depth=self.depth)
            else:
                hidden = self.base.full(batch, gate)
            windows = [self.windows[i] for i in group]
            rows = [self.rows[w.row] for w in windows]
            decoded.update(zip(group, decode(hidden, batch.mask, windows, rows, [0] * len(group), [head]), strict=True))
        for i, window in enumerate(self.windows):
            parts[window.row].append(decoded[i])
        return [head.merge(part, row) for part, row in zip(parts, self.rows, strict=True)]

    def __call__(self, head: Head, expert: int, *, gates: Gates | None = None) -> float:
        """Return the headline metric."""
        headline = self.task.metrics[0]
        return score(self.task, self.answers(head, expert, gates=gates), self.records, metrics=[headline])[headline]


def fit_experts(
    base: Base,
    plans: Sequence[ExpertPlan],
    train: Mapping[str, Sequence[Record]],
    select: Mapping[str, Sequence[Record]],
    *,
    options: LoopOptions,
    log: Log,
    cache: CacheOptions | None = None,
    checkpoint: Path | None = None,
    saved: Callable[[], None] = lambda: None,
    start: Sequence[Expert] | None = None,
    begin: Callable[[int], Callable[[int], None]] = lambda total: lambda windows: None,
) -> list[Expert]:
    """Train one expert per plan, packed, and return them.

    Args:
        base: the frozen base; its banks are replaced.
        plans: one per task, all with the same trunk depth.
        train: rows by task.
        select: held-out rows by task, for early stopping and the choice of the best pass.
        options: shared settings.
        log: where losses and scores go.
        cache: where the trunk's outputs are kept.
        checkpoint: file to resume from and to write to.
        saved: called after each checkpoint.
        start: experts to go on from instead of fresh ones.
        begin: called with the number of windows to come; what it returns is called as they are done.
    """
    cache = cache or CacheOptions()
    depth = min(plan.lora.trunk_depth for plan in plans)
    experts = list(start) if start else [fresh_expert(base, plan, seed=options.seed) for plan in plans]
    install_experts(base, experts)
    heads = [expert.head.to(base.device) for expert in experts]
    examples: list[Example] = []
    trainees = []
    for index, (plan, head) in enumerate(zip(plans, heads, strict=True)):
        own = make_examples(base, head, plan.task, train[plan.task.name], expert=index)
        positions = range(len(examples), len(examples) + len(own))
        examples += own
        trainees.append(Trainee(index, plan, head, base, positions, seed=options.seed))
    budget = options.tokens_per_batch
    examiners = [Examiner(base, p.task, select[p.task.name], depth=depth, budget=budget, cache=cache) for p in plans]
    file = cache.folder / "train" if cache.folder else None
    trunk = TrunkCache(base, examples, depth=depth, limit=cache.limit, budget=budget, file=file)
    trunk.fill()
    loop = PackedLoop(
        base,
        trainees,
        examples,
        trunk,
        evaluate=lambda trainee: examiners[trainee.index](trainee.head, trainee.index),
        options=options,
        log=log,
        checkpoint=checkpoint,
        saved=saved,
        advance=begin(sum(len(trainee.examples) * trainee.plan.epochs for trainee in trainees)),
    )
    loop.run()
    for held in (trunk, *(examiner.cache for examiner in examiners)):
        held.close()
    return [collect(base, expert, index, trainees[index]) for index, expert in enumerate(experts)]


def fresh_expert(base: Base, plan: ExpertPlan, *, seed: int) -> Expert:
    """Draw a new expert; its weights depend on the seed and the task's name alone."""
    head = build_head(plan.task, base.width, plan.head_options)
    head.initialise(seeded(seed, plan.task.name, "head"))
    factors = fresh_factors(base, plan.lora, seed=seed, name=plan.task.name)
    return Expert(plan.task.name, plan.task, base.spec.name, factors, head, plan.lora)


def collect(base: Base, expert: Expert, index: int, trainee: Trainee) -> Expert:
    """Read a trained expert back out of the banks."""
    factors = {layer: base.banks[layer].get(index, old.a.shape[0]) for layer, old in expert.factors.items()}
    progress = trainee.progress
    training = {"steps": progress.step, "epochs": progress.epoch, "select_score": round(progress.best, 6)}
    head = trainee.head.eval().requires_grad_(False)
    return dataclasses.replace(expert, factors=factors, head=head, card={**expert.card, "training": training})


def _unlabelled(window: Window) -> Example:
    ids = np.array(window.encoding.ids, dtype=np.int32)
    return Example(
        0, ids, np.array(window.encoding.type_ids, dtype=np.int8), np.empty(0, dtype=np.int64), 0, window.row
    )
