"""AdapterFusion's second stage (Pfeiffer et al., 2021): base and experts are frozen, attention over them is trained.

A fusion is trained for one task, on the rows of its expert, with a fresh head. Its best pass is kept, and only if it
answers the held-out rows at least as well as the task's own expert. Everything depends on the seed and the task's
name alone, so a training that was interrupted is done again with the same result.

Letters: B batch, S positions, D width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

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
from dynamorouter.training.experts import CacheOptions, Validator
from dynamorouter.training.learner import units_of
from dynamorouter.training.loop import Log, LoopOptions
from dynamorouter.utils.optim import Group, LossScale, Optimizer, warmup_linear
from dynamorouter.utils.progress import SILENT, Progress
from dynamorouter.utils.seeding import seeded


@dataclasses.dataclass(frozen=True, slots=True)
class FusionPlan:
    """How one task's fusion is trained.

    Attributes:
        task: name of the task.
        sources: names of the tasks whose experts are mixed; all on the task's base.
        epochs: passes over the task's train rows.
        learning_rate: peak, of attention and head; it falls linearly to zero.
        key_width: width of queries and keys.
        batch_rows: windows per optimizer step.
        clip: largest gradient norm.
    """

    task: str
    sources: tuple[str, ...]
    epochs: int = 3
    learning_rate: float = 1e-3
    key_width: int = 16
    batch_rows: int = 32
    clip: float = 1.0


def fit_fusions(
    bases: Mapping[str, Base],
    experts: Sequence[Expert],
    plans: Sequence[FusionPlan],
    train: Mapping[str, Sequence[Record]],
    select: Mapping[str, Sequence[Record]],
    *,
    options: LoopOptions,
    log: Callable[[str], Log],
    cache: CacheOptions | None = None,
    progress: Progress = SILENT,
) -> list[Expert]:
    """Train the planned fusions and return all experts, those with a fusion that is worth it having it.

    Args:
        bases: by name; the experts are mounted on them meanwhile.
        experts: all experts; fusions that they have are dropped.
        plans: one per task that gets a fusion.
        train: rows by task.
        select: held-out rows by task.
        options: shared settings.
        log: returns where losses and scores of a task go.
        cache: where the trunk's outputs are kept.
        progress: told how far it is.

    Raises:
        TrainingError: a loss is no number.
    """
    found = {expert.task.name: dataclasses.replace(expert, fusion=None) for expert in experts}
    mounts = {
        name: mount(base, [expert for expert in found.values() if expert.base == name]) for name, base in bases.items()
    }
    trainings = [
        FusionTraining(
            mounts[found[plan.task].base], plan, found, train[plan.task], options=options, log=log(plan.task)
        )
        for plan in plans
    ]
    progress.start("fusion", sum(len(training.examples) * training.plan.epochs for training in trainings))
    for training in trainings:
        expert = training.run(select[training.plan.task], cache=cache or CacheOptions(), progress=progress)
        found[training.plan.task] = expert
    for mounted in mounts.values():
        mounted.close()
    return list(found.values())


def fresh_fusion(mounted: Mounted, plan: FusionPlan, experts: Mapping[str, Expert], *, seed: int) -> Fusion:
    """Draw a new fusion over all layers that a source changes; it depends on the seed and the names alone."""
    base = mounted.base
    sources, target = [experts[name] for name in plan.sources], experts[plan.task]
    layers = {}
    for name in mounted.banks:
        ranks = [source.factors[name].a.shape[0] for source in sources if name in source.factors]
        if ranks:
            layer = FusionLayer(base.shape(name)[1], experts=len(sources), rank=max(ranks), key_width=plan.key_width)
            layers[name] = layer.initialise(seeded(seed, plan.task, "fusion", name))
    head = build_head(target.task, base.width, target.head.options)
    head.initialise(seeded(seed, plan.task, "fusion", "head"))
    return Fusion(tuple(source.name for source in sources), layers, head).to(base.device)


class FusionTraining:
    """One task's fusion in training.

    Args:
        mounted: the experts of its base.
        plan: how it is trained.
        experts: by task.
        records: the task's train rows.
        options: shared settings.
        log: where losses and scores go.
    """

    def __init__(
        self,
        mounted: Mounted,
        plan: FusionPlan,
        experts: Mapping[str, Expert],
        records: Sequence[Record],
        *,
        options: LoopOptions,
        log: Log,
    ) -> None:
        base = mounted.base
        slots = {task: mounted.slots[expert.name] for task, expert in experts.items() if expert.name in mounted.slots}
        self.base, self.plan, self.options, self.log = base, plan, options, log
        self.expert, self.slot = experts[plan.task], slots[plan.task]
        self.fusion = fresh_fusion(mounted, plan, experts, seed=options.seed)
        self.depth = min(experts[name].lora.trunk_depth for name in plan.sources)
        self.examples = make_examples(base, self.fusion.head, self.expert.task, records, expert=self.slot)
        self.steps = 0
        self.scale = LossScale.of(base.dtype)
        self._sources = torch.tensor([slots[name] for name in plan.sources], device=base.device)
        self._parameters = self.fusion.parameters()
        self._optimizer = Optimizer([Group(self._parameters, plan.learning_rate)], clip=plan.clip)

    def gate(self, rows: int) -> FusionGate:
        """Return the gate of a batch of so many rows."""
        return FusionGate(self.fusion.layers, self._sources, rows=rows)

    def run(self, select: Sequence[Record], *, cache: CacheOptions, progress: Progress) -> Expert:
        """Train, and return the task's expert with both scores in its card, and the fusion if it is no worse."""
        torch.manual_seed(seeded(self.options.seed, self.plan.task, "fusion").initial_seed())  # dropout of the head
        task, budget = self.expert.task, self.options.tokens_per_batch
        validator = Validator(self.base, task, select, depth=self.depth, budget=budget, cache=cache)
        plain = validator(self.expert.head.to(self.base.device).eval(), self.slot)
        file = cache.folder / f"{task.name}.fusion" if cache.folder else None
        trunk = TrunkCache(self.base, self.examples, depth=self.depth, limit=cache.limit, budget=budget, file=file)
        trunk.fill()
        best, kept, passes = -math.inf, list[Tensor](), 0
        for epoch in range(self.plan.epochs):
            self._pass(epoch, trunk, progress)
            score = validator(self.fusion.head.eval(), self.slot, gates=self.gate)
            self.log(self.steps, {f"validation/{task.name}": score, f"epoch/{task.name}": epoch + 1})
            if score > best or not kept:
                best, passes = score, epoch + 1
                kept = [parameter.detach().clone() for parameter in self._parameters]
        for held in (trunk, validator.cache):
            held.close()
        with torch.no_grad():
            for parameter, value in zip(self._parameters, kept, strict=True):
                parameter.requires_grad_(False).copy_(value)
        better = best >= plain
        self.log(self.steps, {"select_score": best, "plain_select_score": plain, "kept": better})
        notes = {
            "kept": better,
            "select_score": round(best, 6),
            "plain_select_score": round(plain, 6),
            "sources": list(self.fusion.sources),
            "epochs": passes,
        }
        training = {**self.expert.card.get("training", {}), "fusion": notes}
        card = {**self.expert.card, "training": training}
        return dataclasses.replace(self.expert, card=card, fusion=self.fusion if better else None)

    def _pass(self, epoch: int, trunk: TrunkCache, progress: Progress) -> None:
        """Go over all examples once."""
        self.fusion.head.train()
        for batch in self._batches(epoch):
            loss = self._accumulate(batch, trunk)
            self._step(loss)
            if self.steps % self.options.log_every == 0:
                self.log(self.steps, {f"loss/{self.plan.task}": loss})
            progress.advance(len(batch))

    def _batches(self, epoch: int) -> Iterator[list[int]]:
        generator = seeded(self.options.seed, self.plan.task, "fusion", "order", str(epoch))
        order = torch.randperm(len(self.examples), generator=generator).tolist()
        for first in range(0, len(order), self.plan.batch_rows):
            yield order[first : first + self.plan.batch_rows]

    def _accumulate(self, batch: Sequence[int], trunk: TrunkCache) -> float:
        """Run a batch forward and backward in passes under the token budget; returns its mean loss."""
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
        total = math.ceil(len(self.examples) / self.plan.batch_rows) * self.plan.epochs
        norm = self._optimizer.step(warmup_linear(self.steps, total), scale=self.scale.value)
        if not math.isfinite(loss) or (not math.isfinite(norm) and not self.scale.lower()):
            raise TrainingError(
                f"fusion of task {self.plan.task!r}: loss {loss}, gradient norm {norm} at step {self.steps + 1}; "
                f"lower experts.fusion.{self.plan.task}.learning_rate in a new run, or look for broken rows"
            )
        self.steps += 1
