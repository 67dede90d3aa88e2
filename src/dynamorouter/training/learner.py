"""One expert in training: its slices of the banks, its head, its optimizer, its place in its own data.

Nothing here depends on which other experts are trained beside it.

Letters: E experts, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dynamorouter.model.heads.base import Head
from dynamorouter.model.lora.factors import LoraSettings
from dynamorouter.model.lora.mount import Mounted
from dynamorouter.model.text.examples import TrainingExample
from dynamorouter.tasks.task import Task
from dynamorouter.training.validate import SelectBy
from dynamorouter.utils.optim import Optimizer, decay_groups, warmup_linear
from dynamorouter.utils.seeding import seeded


@dataclass(frozen=True, slots=True)
class ExpertPlan:
    """How one expert is trained.

    Attributes:
        task: what it learns.
        lora: the shape of its factors.
        head_options: given to the head's constructor.
        epochs: most passes over its rows.
        batch_rows: windows per optimizer step, accumulation included.
        learning_rate: peak, of the factors.
        head_learning_rate: peak, of the head.
        weight_decay: decoupled; biases are left out.
        warmup: share of the steps over which the rate rises; it falls linearly to zero after that.
        clip: largest gradient norm, or ``None``.
        patience: epochs without gain before it stops; 0 never stops early.
        min_delta: smallest gain of the headline metric that counts.
        weight: factor on its loss.
        uncertainty: learn the weight instead (Kendall et al., 2018).
        select_by: what decides on the best pass of a head that writes, its held-out loss or its headline metric.
    """

    task: Task
    lora: LoraSettings = field(default_factory=LoraSettings)
    head_options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 3
    batch_rows: int = 32
    learning_rate: float = 1e-3
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.06
    clip: float | None = 1.0
    patience: int = 2
    min_delta: float = 0.0
    weight: float = 1.0
    uncertainty: bool = False
    select_by: SelectBy = "loss"


@dataclass(slots=True)
class LearnerProgress:
    """Where an expert is in its own training.

    Attributes:
        epoch: passes begun, from 0.
        position: examples of this pass that have been used.
        step: optimizer steps taken.
        best: best headline score so far.
        bad_epochs: epochs since the best.
        done: nothing is left to do.
    """

    epoch: int = 0
    position: int = 0
    step: int = 0
    best: float = -math.inf
    bad_epochs: int = 0
    done: bool = False


class ExpertLearner:
    """An expert in training.

    Args:
        index: its place in the banks.
        plan: how it is trained.
        head: its head, on the base's device.
        mounted: the experts that learn.
        examples: positions of its examples in the common list.
        seed: fixes the order of its rows, by the task's name and nothing else.
    """

    def __init__(
        self, index: int, plan: ExpertPlan, head: Head, mounted: Mounted, examples: Sequence[int], *, seed: int
    ) -> None:
        head.attach(mounted.base)
        self.index = index
        self.plan = plan
        self.head = head
        self.examples = list(examples)
        self.seed = seed
        self.progress = LearnerProgress()
        self.log_variance = nn.Parameter(torch.zeros((), device=mounted.base.device), requires_grad=plan.uncertainty)
        self._banks = [bank for bank in mounted.banks.values() if bool(bank.scaling[index] != 0)]
        self._slices = [side.detach()[index] for bank in self._banks for side in (bank.a, bank.b)]
        self.optimizer = Optimizer(
            [
                *decay_groups(self._slices, plan.learning_rate, plan.weight_decay),
                *decay_groups([*head.parameters(), self.log_variance], plan.head_learning_rate, plan.weight_decay),
            ],
            clip=plan.clip,
        )
        self.best = [tensor.clone() for tensor in self.tensors()]

    @property
    def name(self) -> str:
        """The task's name."""
        return self.plan.task.name

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass."""
        return math.ceil(len(self.examples) / self.plan.batch_rows)

    def tensors(self) -> list[Tensor]:
        """Everything that is trained: views of the banks' slices, and the head."""
        return [*self._slices, *(p.detach() for p in self.head.parameters()), self.log_variance.detach()]

    def next_batch(self) -> list[int]:
        """Return the next examples, and move on; the order of a pass depends on seed, task and pass alone."""
        generator = seeded(self.seed, self.name, "order", str(self.progress.epoch))
        order = torch.randperm(len(self.examples), generator=generator).tolist()
        first = self.progress.position
        self.progress.position = min(first + self.plan.batch_rows, len(order))
        return [self.examples[i] for i in order[first : self.progress.position]]

    def weigh(self, loss: Tensor) -> Tensor:
        """Apply the fixed weight or the learned one to a mean loss of this task."""
        if self.plan.uncertainty:
            return loss * torch.exp(-self.log_variance) * self.plan.weight
        return loss * self.plan.weight

    def step(self, *, scale: float) -> float:
        """Take one optimizer step with the gradients that lie in banks and head.

        Args:
            scale: what the loss was multiplied by.

        Returns:
            The gradient's norm before clipping; not finite when the step was left out.
        """
        gradients = [
            side.grad[self.index] for bank in self._banks for side in (bank.a, bank.b) if side.grad is not None
        ]
        for tensor, gradient in zip(self._slices, gradients, strict=True):
            tensor.grad = gradient
        if self.plan.uncertainty and self.log_variance.grad is not None:
            self.log_variance.grad += scale  # the regulariser of the learned weight, d(log variance)/d(log variance)
        total = self.steps_per_epoch * self.plan.epochs
        norm = self.optimizer.step(warmup_linear(self.progress.step, total, self.plan.warmup), scale=scale)
        self.progress.step += math.isfinite(norm)
        return norm

    def skip(self) -> float:
        """Leave a step out: forget the gradients, and return 0 for their norm."""
        self.optimizer.forget()
        return 0.0

    def end_of_pass(self) -> bool:
        """Tell whether a pass is complete."""
        return self.progress.position >= len(self.examples)

    def judge(self, score: float) -> None:
        """Take note of the score after a pass: keep the best, stop when there is no gain for too long."""
        progress = self.progress
        progress.epoch, progress.position = progress.epoch + 1, 0
        if score > progress.best + self.plan.min_delta or progress.best == -math.inf:
            progress.best, progress.bad_epochs = score, 0
            for kept, tensor in zip(self.best, self.tensors(), strict=True):
                kept.copy_(tensor)
        else:
            progress.bad_epochs += 1
        stalled = self.plan.patience and progress.bad_epochs >= self.plan.patience
        progress.done = progress.epoch >= self.plan.epochs or bool(stalled)

    def restore_best(self) -> None:
        """Put the best weights back."""
        for kept, tensor in zip(self.best, self.tensors(), strict=True):
            tensor.copy_(kept)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return progress as JSON and everything else as tensors."""
        tensors = {**dict(self._named()), **self.optimizer.state()}
        return asdict(self.progress), {f"{self.name}/{key}": value for key, value in tensors.items()}

    def restore(self, progress: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take up what ``state`` returned."""
        self.progress = LearnerProgress(**progress)
        prefix = f"{self.name}/"
        for name, tensor in self._named():
            tensor.copy_(tensors[prefix + name])
        self.optimizer.restore({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        for i, (tensor, kept) in enumerate(zip(self.tensors(), self.best, strict=True)):
            yield f"now.{i}", tensor
            yield f"best.{i}", kept


def units_of(examples: Sequence[TrainingExample], batch: Sequence[int]) -> int:
    """Count the terms of a batch's loss."""
    return sum(examples[i].units for i in batch)
