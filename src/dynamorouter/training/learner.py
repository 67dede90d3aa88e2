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
from dynamorouter.model.lora.mount import Mounted
from dynamorouter.model.text.examples import TrainingExample
from dynamorouter.tasks.task import Task
from dynamorouter.training.config import ExpertConfig
from dynamorouter.utils.optim import Optimizer, decay_groups, warmup_linear
from dynamorouter.utils.seeding import seeded


@dataclass(frozen=True, slots=True)
class ExpertPlan:
    """What one expert learns, and how.

    Attributes:
        task: what it learns.
        config: how, the task's own ``hyper`` applied.
        head_options: given to the head's constructor.
    """

    task: Task
    config: ExpertConfig
    head_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class LearnerProgress:
    """Where an expert is in its own training.

    Attributes:
        epoch: epochs done.
        position: examples of this epoch that have been used.
        step: optimizer steps taken.
        best: best primary score so far.
        bad_epochs: epochs since the best.
        loss: of the epoch's examples so far, as their part of the mean over the epoch.
        done: nothing is left to do.
    """

    epoch: int = 0
    position: int = 0
    step: int = 0
    best: float = -math.inf
    bad_epochs: int = 0
    loss: float = 0.0
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
        config = plan.config
        self._learns_weight = config.loss_weights == "uncertainty"
        self._weight = config.fixed_weights.get(self.name, 1.0)
        self.log_variance = nn.Parameter(torch.zeros((), device=mounted.base.device), requires_grad=self._learns_weight)
        self._banks = [bank for bank in mounted.banks.values() if bool(bank.scaling[index] != 0)]
        self._slices = [side.detach()[index] for bank in self._banks for side in (bank.a, bank.b)]
        self.optimizer = Optimizer(
            [
                *decay_groups(self._slices, config.learning_rate, config.weight_decay),
                *decay_groups([*head.parameters(), self.log_variance], config.head_rate, config.weight_decay),
            ],
            clip=config.clip,
        )
        self.best = [tensor.clone() for tensor in self.tensors()]

    @property
    def name(self) -> str:
        """The task's name."""
        return self.plan.task.name

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch."""
        return math.ceil(len(self.examples) / self.plan.config.step_rows)

    def tensors(self) -> list[Tensor]:
        """Everything that is trained: views of the banks' slices, and the head."""
        return [*self._slices, *(p.detach() for p in self.head.parameters()), self.log_variance.detach()]

    def next_batch(self) -> list[int]:
        """Return the next examples, and move on; the order of an epoch depends on seed, task and epoch alone."""
        generator = seeded(self.seed, self.name, "order", str(self.progress.epoch))
        order = torch.randperm(len(self.examples), generator=generator).tolist()
        first = self.progress.position
        self.progress.position = min(first + self.plan.config.step_rows, len(order))
        return [self.examples[i] for i in order[first : self.progress.position]]

    def weigh(self, loss: Tensor) -> Tensor:
        """Apply the fixed weight or the learned one to a mean loss of this task."""
        if self._learns_weight:
            return loss * torch.exp(-self.log_variance) * self._weight
        return loss * self._weight

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
        if self._learns_weight and self.log_variance.grad is not None:
            self.log_variance.grad += scale  # the regulariser of the learned weight, d(log variance)/d(log variance)
        total = self.steps_per_epoch * self.plan.config.epochs
        norm = self.optimizer.step(warmup_linear(self.progress.step, total, self.plan.config.warmup), scale=scale)
        self.progress.step += math.isfinite(norm)
        return norm

    def skip(self) -> float:
        """Leave a step out: forget the gradients, and return 0 for their norm."""
        self.optimizer.forget()
        return 0.0

    def epoch_is_over(self) -> bool:
        """Tell whether all examples of the epoch have been used."""
        return self.progress.position >= len(self.examples)

    def end_epoch(self, score: float) -> None:
        """Take note of the score after an epoch: keep the best, stop when there is no gain for too long."""
        progress, config = self.progress, self.plan.config
        progress.epoch, progress.position, progress.loss = progress.epoch + 1, 0, 0.0
        if score > progress.best + config.min_delta or progress.best == -math.inf:
            progress.best, progress.bad_epochs = score, 0
            for best_tensor, tensor in zip(self.best, self.tensors(), strict=True):
                best_tensor.copy_(tensor)
        else:
            progress.bad_epochs += 1
        stalled = config.patience and progress.bad_epochs >= config.patience
        progress.done = progress.epoch >= config.epochs or bool(stalled)

    def restore_best(self) -> None:
        """Put the best weights back."""
        for best_tensor, tensor in zip(self.best, self.tensors(), strict=True):
            tensor.copy_(best_tensor)

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
        for i, (tensor, best_tensor) in enumerate(zip(self.tensors(), self.best, strict=True)):
            yield f"now.{i}", tensor
            yield f"best.{i}", best_tensor


def units_of(examples: Sequence[TrainingExample], batch: Sequence[int]) -> int:
    """Count the terms of a batch's loss."""
    return sum(examples[i].units for i in batch)
