"""AdapterFusion's second stage (Pfeiffer et al., 2021): base and experts are frozen, attention over them is trained.

A fusion is trained for one task, on the rows of its expert, with a fresh head. Its best epoch is kept, and only if it
answers the held-out rows at least as well as the task's own expert. Everything depends on the seed and the task's
name alone, so a training that was interrupted is done again with the same result.

Letters: B batch, S positions, D width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from dynamorouter.errors import TrainingError
from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.base import build_head
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.lora.fusion import Fusion, FusionLayer
from dynamorouter.model.lora.gates import FusionGate
from dynamorouter.model.lora.mount import Mounted, mount
from dynamorouter.model.text.batching import token_batches
from dynamorouter.model.text.examples import batch_of, make_examples
from dynamorouter.model.text.trunk_cache import TrunkCache
from dynamorouter.tasks.record import Record
from dynamorouter.training.config import FusionConfig
from dynamorouter.training.experts import CacheOptions, Validator
from dynamorouter.training.learner import units_of
from dynamorouter.training.log import UNLOGGED, TrainingLog
from dynamorouter.training.loop import LoopOptions
from dynamorouter.utils.optim import Group, LossScale, Optimizer, warmup_linear
from dynamorouter.utils.progress import SILENT, Progress
from dynamorouter.utils.seeding import seeded

CLIP = 1.0
"""Largest norm of a fusion's gradient."""


def fit_fusions(
    bases: Mapping[str, Base],
    experts: Sequence[Expert],
    fusions: Mapping[str, FusionConfig],
    train: Mapping[str, Sequence[Record]],
    select: Mapping[str, Sequence[Record]],
    *,
    options: LoopOptions,
    log: TrainingLog = UNLOGGED,
    cache: CacheOptions | None = None,
    progress: Progress = SILENT,
) -> list[Expert]:
    """Train fusions and return all experts, those with a fusion that is worth it having it.

    Args:
        bases: by name; the experts are mounted on them meanwhile.
        experts: all experts; fusions that they have are dropped.
        fusions: how, by the task that gets one; without ``sources`` it mixes all experts of the task's base.
        train: rows by task.
        select: held-out rows by task.
        options: shared settings.
        log: told of losses and scores, each task's in a part of its own.
        cache: where the trunk's outputs are kept.
        progress: told how far it is.

    Raises:
        TrainingError: a loss is no number.
    """
    by_task = {expert.task.name: dataclasses.replace(expert, fusion=None) for expert in experts}
    mounts = {
        name: mount(base, [expert for expert in by_task.values() if expert.base == name])
        for name, base in bases.items()
    }
    trainings = []
    for task, config in fusions.items():
        mounted, part = mounts[by_task[task].base], log.part(f"fusion of {task}")
        training = FusionTraining(mounted, task, config, by_task, train[task], options=options, log=part)
        trainings.append(training)
    progress.start("fusion", sum(len(training.examples) * training.config.epochs for training in trainings))
    for training in trainings:
        task = training.task.name
        by_task[task] = training.run(select[task], cache=cache or CacheOptions(), progress=progress)
    for mounted in mounts.values():
        mounted.close()
    return list(by_task.values())


def fresh_fusion(mounted: Mounted, expert: Expert, sources: Sequence[Expert], *, key_width: int, seed: int) -> Fusion:
    """Draw a new fusion for an expert's task over all layers that a source changes; seed and names alone decide."""
    base = mounted.base
    layers = {}
    for name in mounted.banks:
        ranks = [source.factors[name].a.shape[0] for source in sources if name in source.factors]
        if ranks:
            layer = FusionLayer(base.shape(name)[1], experts=len(sources), rank=max(ranks), key_width=key_width)
            layers[name] = layer.initialise(seeded(seed, expert.task.name, "fusion", name))
    head = build_head(expert.task, base.width, expert.head.options)
    head.initialise(seeded(seed, expert.task.name, "fusion", "head"))
    return Fusion(tuple(source.name for source in sources), layers, head).to(base.device)


class FusionTraining:
    """One task's fusion in training.

    Args:
        mounted: the experts of its base.
        task: the task's name.
        config: how it is trained.
        experts: by task.
        records: the task's train rows.
        options: shared settings.
        log: told of losses and scores.
    """

    def __init__(
        self,
        mounted: Mounted,
        task: str,
        config: FusionConfig,
        experts: Mapping[str, Expert],
        records: Sequence[Record],
        *,
        options: LoopOptions,
        log: TrainingLog,
    ) -> None:
        base = mounted.base
        on_base = {name: expert for name, expert in experts.items() if expert.name in mounted.slots}
        slots = {name: mounted.slots[expert.name] for name, expert in on_base.items()}
        self.base, self.config, self.options, self.log = base, config, options, log
        self.expert, self.slot = on_base[task], slots[task]
        self.task = self.expert.task
        names = tuple(on_base) if config.sources is None else config.sources
        sources = [on_base[name] for name in names]
        self.fusion = fresh_fusion(mounted, self.expert, sources, key_width=config.key_width, seed=options.seed)
        self.depth = min(source.lora.trunk_depth for source in sources)
        self.examples = make_examples(base, self.fusion.head, self.expert.task, records, expert=self.slot)
        self.steps = 0
        self.scale = LossScale.of(base.dtype)
        self._sources = torch.tensor([slots[name] for name in names], device=base.device)
        self._parameters = self.fusion.parameters()
        self._optimizer = Optimizer([Group(self._parameters, config.learning_rate)], clip=CLIP)

    def gate(self, rows: int) -> FusionGate:
        """Return the gate of a batch of so many rows."""
        return FusionGate(self.fusion.layers, self._sources, rows=rows)

    def run(self, select: Sequence[Record], *, cache: CacheOptions, progress: Progress) -> Expert:
        """Train, and return the task's expert with both scores in its card, and the fusion if it is no worse."""
        torch.manual_seed(seeded(self.options.seed, self.task.name, "fusion").initial_seed())  # dropout of the head
        task, budget = self.task, self.options.tokens_per_batch
        validator = Validator(self.base, task, select, depth=self.depth, budget=budget, cache=cache)
        plain = validator(self.expert.head.to(self.base.device).eval(), self.slot)
        file = cache.folder / f"{task.name}.fusion" if cache.folder else None
        trunk = TrunkCache(self.base, self.examples, depth=self.depth, limit=cache.limit, budget=budget, file=file)
        trunk.fill()
        best, best_weights, best_epoch = -math.inf, list[Tensor](), 0
        for epoch in range(self.config.epochs):
            self._train_epoch(epoch, trunk, progress)
            score = validator(self.fusion.head.eval(), self.slot, gates=lambda positions: self.gate(len(positions)))
            self.log.note(self.steps, {f"validation/{task.name}": score, f"epoch/{task.name}": epoch + 1})
            if score > best or not best_weights:
                best, best_epoch = score, epoch + 1
                best_weights = [parameter.detach().clone() for parameter in self._parameters]
        for outputs in (trunk, validator.cache):
            outputs.close()
        with torch.no_grad():
            for parameter, value in zip(self._parameters, best_weights, strict=True):
                parameter.requires_grad_(False).copy_(value)
        better = best >= plain
        self.log.note(self.steps, {"select_score": best, "plain_select_score": plain, "kept": better})
        notes = {
            "kept": better,
            "select_score": round(best, 6),
            "plain_select_score": round(plain, 6),
            "sources": list(self.fusion.sources),
            "epochs": best_epoch,
        }
        training = {**self.expert.card.get("training", {}), "fusion": notes}
        card = {**self.expert.card, "training": training}
        return dataclasses.replace(self.expert, card=card, fusion=self.fusion if better else None)

    def _train_epoch(self, epoch: int, trunk: TrunkCache, progress: Progress) -> None:
        """Go over all examples once."""
        self.fusion.head.train()
        for batch in self._batches(epoch):
            loss = self._accumulate(batch, trunk)
            self._step(loss)
            if self.steps % self.options.log_every == 0:
                self.log.note(self.steps, {f"loss/{self.task.name}": loss})
            progress.advance(len(batch), f"loss {loss:.4f}")

    def _batches(self, epoch: int) -> Iterator[list[int]]:
        generator = seeded(self.options.seed, self.task.name, "fusion", "order", str(epoch))
        order = torch.randperm(len(self.examples), generator=generator).tolist()
        for first in range(0, len(order), self.config.batch_rows):
            yield order[first : first + self.config.batch_rows]

    def _accumulate(self, batch: Sequence[int], trunk: TrunkCache) -> float:
        """Run a batch forward and backward in micro-batches under the token budget; returns its mean loss."""
        units, total = units_of(self.examples, batch), 0.0
        for group in token_batches([len(self.examples[i]) for i in batch], budget=self.options.tokens_per_batch):
            positions = [batch[i] for i in group]
            chosen = [self.examples[i] for i in positions]
            padded = batch_of(self.base, chosen)
            if self.depth:
                hidden = trunk.fetch(positions, padded.mask.shape[1])
                hidden = self.base.forward_from(hidden, padded.mask, self.gate(len(group)), depth=self.depth)
            else:
                hidden = self.base.forward(padded, self.gate(len(group)))
            loss = self.fusion.head.loss(hidden, padded.mask, [example.target for example in chosen]).sum() / units
            loss.mul(self.scale.value).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def _step(self, loss: float) -> None:
        """Take one optimizer step; with fp16, an overflow only lowers the loss scale."""
        total = math.ceil(len(self.examples) / self.config.batch_rows) * self.config.epochs
        norm = self._optimizer.step(warmup_linear(self.steps, total), scale=self.scale.value)
        if not math.isfinite(loss) or (not math.isfinite(norm) and not self.scale.lower()):
            raise TrainingError(
                f"fusion of task {self.task.name!r}: loss {loss}, gradient norm {norm} at step {self.steps + 1}; "
                f"lower experts.fusion.{self.task.name}.learning_rate in a new run, or look for broken rows"
            )
        self.steps += 1
