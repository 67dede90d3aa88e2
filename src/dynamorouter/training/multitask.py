"""One body under the heads of several tasks: joint LoRA, full fine-tuning, and heads alone (linear probes).

Unlike the experts of ``training.experts``, which never touch each other, everything here is changed by the rows of all
tasks. Each epoch takes every row once; a step's batch holds every task in proportion to its rows.

Letters: B batch, S positions, D width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dynamorouter.errors import TrainingError
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.gate import Gate
from dynamorouter.model.heads.base import Head
from dynamorouter.model.lora.gates import RowGate, SoftGate
from dynamorouter.model.lora.mount import Mounted
from dynamorouter.model.text.batching import rows_of, token_batches
from dynamorouter.model.text.examples import TrainingExample, batch_of, make_examples
from dynamorouter.model.text.packing import Layout, last_states
from dynamorouter.model.text.trunk_cache import TrunkCache
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task
from dynamorouter.training.config import ExpertConfig
from dynamorouter.utils.optim import LossScale, Optimizer, decay_groups, warmup_linear
from dynamorouter.utils.seeding import seeded


@dataclass(frozen=True, slots=True)
class TaskHead:
    """One task's part of what is trained.

    Attributes:
        task: what is learned.
        head: trained in place, unless heads are frozen.
        rows: to learn from.
    """

    task: Task
    head: Head
    rows: Sequence[Record]


class Backbone(Protocol):
    """What lies under the heads.

    Attributes:
        base: the base that computes the hidden states.
    """

    base: Base

    def parameters(self) -> list[nn.Parameter]:
        """Return what is trained of it."""

    def hidden(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the last hidden states ``(B, S, D)`` of some examples, and their mask ``(B, S)``."""


class FrozenBackbone:
    """The base under fixed gates; what it makes of the examples is computed once.

    Args:
        base: with whatever experts are mounted.
        examples: what will be asked for, by position.
        gates: makes the gate of a batch from the rows' positions; ``None`` is the bare base.
        limit: most bytes to keep.
        budget: most tokens in a micro-batch.
    """

    def __init__(
        self,
        base: Base,
        examples: Sequence[TrainingExample],
        *,
        gates: Callable[[Sequence[TrainingExample]], Gate | None] = lambda examples: None,
        limit: int,
        budget: int,
    ) -> None:
        self.base, self.examples = base, examples

        def compute(chosen: Sequence[TrainingExample]) -> Tensor:
            return base.forward(batch_of(base, chosen), gates(chosen))

        self.cache = TrunkCache(base, examples, depth=base.depth, limit=limit, budget=budget, compute=compute)
        self.cache.fill()

    def parameters(self) -> list[nn.Parameter]:
        """Return nothing: it is frozen."""
        return []

    def hidden(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See ``Backbone``."""
        mask = batch_of(self.base, [self.examples[i] for i in positions]).mask
        return self.cache.fetch(positions, mask.shape[1]), mask


class AdapterBackbone:
    """The only expert that is mounted, which every row goes through.

    Args:
        mounted: the expert.
        examples: what will be asked for, by position.
        depth: blocks below this one hold no factors, and are computed once.
        limit: most bytes to keep.
        budget: most tokens in a micro-batch.
    """

    def __init__(
        self, mounted: Mounted, examples: Sequence[TrainingExample], *, depth: int, limit: int, budget: int
    ) -> None:
        self.mounted, self.base, self.examples, self.depth = mounted, mounted.base, examples, depth
        self.cache = TrunkCache(self.base, examples, depth=depth, limit=limit, budget=budget)
        self.cache.fill()

    def parameters(self) -> list[nn.Parameter]:
        """Return the factors of all layers."""
        return [side for bank in self.mounted.banks.values() for side in (bank.a, bank.b)]

    def hidden(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See ``Backbone``."""
        layout = Layout.of(self.examples, [[i] for i in positions])
        batch = layout.batch(self.base)
        states = self.cache.fetch(positions, batch.mask.shape[1]) if self.depth else None
        gate = one_for_all(len(positions), self.base.device)
        return last_states(self.base, layout, batch, gate, states=states, depth=self.depth)


class FullBackbone:
    """Every weight of a base that nobody else uses.

    Args:
        base: on which nothing is mounted.
        examples: what will be asked for, by position.
    """

    def __init__(self, base: Base, examples: Sequence[TrainingExample]) -> None:
        self.base, self.examples = base, examples

    def parameters(self) -> list[nn.Parameter]:
        """Return all weights but those of a pooler, which no head reads."""
        return [p for name, p in self.base.weights.items() if "pooler" not in name]

    def hidden(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See ``Backbone``."""
        layout = Layout.of(self.examples, [[i] for i in positions])
        return last_states(self.base, layout, layout.batch(self.base), RowGate(_nobody(len(positions), self.base)))


def _nobody(rows: int, base: Base) -> Tensor:
    """Return the expert of rows that have none, ``(B,)``."""
    return torch.full((rows,), -1, device=base.device)


def one_for_all(rows: int, device: torch.device) -> SoftGate:
    """Return the gate that sends every row through the only expert, as plain matmuls of any rank."""
    return SoftGate(torch.ones(rows, 1, device=device))


def shared_examples(base: Base, task_heads: Sequence[TaskHead]) -> list[TrainingExample]:
    """Cut the rows of all tasks into windows; each window's ``expert`` is its task's position."""
    return [
        example
        for index, task_head in enumerate(task_heads)
        for example in make_examples(base, task_head.head, task_head.task, task_head.rows, expert=index)
    ]


def fit_shared(
    body: Backbone,
    task_heads: Sequence[TaskHead],
    examples: Sequence[TrainingExample],
    *,
    config: ExpertConfig,
    seed: int,
    train_heads: bool = True,
    validate: Callable[[], float] | None = None,
) -> list[float]:
    """Train a body and heads in place.

    Args:
        body: what lies under the heads.
        task_heads: tasks and heads, in the order of the examples' ``expert``.
        examples: what ``shared_examples`` made of the tasks.
        config: schedule and optimizer, those of the experts; ``step_rows`` is windows of one task per step, on average.
        seed: of the order and of dropout.
        train_heads: whether the heads are trained too.
        validate: called after each epoch; the weights after the best one are kept. ``None`` keeps the last.

    Returns:
        What ``validate`` returned after each epoch.

    Raises:
        TrainingError: a loss or a gradient is no number.
    """
    torch.manual_seed(seed)  # dropout draws from torch's own generator
    heads = [task_head.head for task_head in task_heads]
    modules = nn.ModuleList(heads)
    optimizer = _optimizer(body, heads if train_heads else [], config)
    trained = optimizer.parameters
    for parameter in trained:
        parameter.requires_grad_(True)
    scale = LossScale.of(body.base.dtype)
    steps = math.ceil(len(examples) / (config.step_rows * len(task_heads)))
    total, step = steps * config.epochs, 0
    scores: list[float] = []
    best = [p.detach().clone() for p in trained] if validate else []
    for epoch in range(config.epochs):
        modules.train(train_heads)
        for batch in _batches(examples, len(task_heads), steps, seed=seed, epoch=epoch):
            loss = _backward(body, heads, examples, batch, budget=config.tokens_per_batch, scale=scale.value)
            norm = optimizer.step(warmup_linear(step, total, config.warmup), scale=scale.value)
            step += 1
            if not math.isfinite(loss) or (not math.isfinite(norm) and not scale.lower()):
                raise TrainingError(
                    f"a shared body: loss {loss}, gradient norm {norm} at step {step}; lower its learning rate, "
                    f"which is {config.learning_rate:g}, or look for broken rows"
                )
        modules.eval()
        if validate:
            scores.append(validate())
            if scores[-1] > max(scores[:-1], default=-math.inf):
                best = [p.detach().clone() for p in trained]
    for parameter in trained:
        parameter.requires_grad_(False)
    for parameter, best_weight in zip(trained, best, strict=False):
        parameter.copy_(best_weight)
    return scores


def _optimizer(body: Backbone, heads: Sequence[Head], config: ExpertConfig) -> Optimizer:
    """Return the optimizer of a body and heads, each at its own rate."""
    parameters = [parameter for head in heads for parameter in head.parameters()]
    groups = decay_groups(body.parameters(), config.learning_rate, config.weight_decay)
    return Optimizer([*groups, *decay_groups(parameters, config.head_rate, config.weight_decay)], clip=config.clip)


def _batches(examples: Sequence[TrainingExample], tasks: int, steps: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Spread each task's examples, shuffled, evenly over the steps of an epoch."""
    batches: list[list[int]] = [[] for _ in range(steps)]
    for task in range(tasks):
        task_examples = np.array([i for i, example in enumerate(examples) if example.expert == task])
        order = torch.randperm(len(task_examples), generator=seeded(seed, "shared", str(task), str(epoch))).numpy()
        for batch, part in zip(batches, np.array_split(task_examples[order], steps), strict=True):
            batch.extend(int(i) for i in part)
    return [batch for batch in batches if batch]


def _backward(
    body: Backbone,
    heads: Sequence[Head],
    examples: Sequence[TrainingExample],
    batch: Sequence[int],
    *,
    budget: int,
    scale: float,
) -> float:
    """Add up the gradients of the mean over tasks of each task's mean loss, times ``scale``; returns that mean."""
    units: Counter[int] = Counter()
    for i in batch:
        units[examples[i].expert] += examples[i].units
    mean_loss = 0.0
    for group in token_batches([len(examples[i]) for i in batch], budget=budget):
        positions = [batch[i] for i in group]
        hidden, mask = body.hidden(positions)
        losses = []
        for task, rows in rows_of([examples[i].expert for i in positions]).items():
            targets = [examples[positions[row]].target for row in rows]
            index = torch.tensor(rows, device=hidden.device)
            loss = heads[task].loss(hidden[index], mask[index], targets).sum()
            losses.append(loss / units[task] / len(units))
        total = torch.stack(losses).sum()
        total.mul(scale).backward()  # type: ignore[no-untyped-call]
        mean_loss += float(total.detach())
    return mean_loss
