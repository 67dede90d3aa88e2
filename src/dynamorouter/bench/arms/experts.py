"""Arms made of the experts as they are: alone, each with its own task, mixed, or as an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from dynamorouter.bench.arms.base import Arm, arms
from dynamorouter.bench.experiment import Experiment, factor_count, factor_work, head_count
from dynamorouter.errors import ConfigError
from dynamorouter.model.base.gate import Gate
from dynamorouter.model.heads.base import EncoderHead, choosing_heads
from dynamorouter.model.lora.gates import SoftGate
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.task import Task

ALL = "experts"
"""What the banks hold when all experts lie in them, in order."""


def _place_all(experiment: Experiment) -> None:
    experiment.install([replace(expert, fusion=None) for expert in experiment.system.experts], key=ALL)


@arms.register("expert")
class OneExpert(Arm):
    """One expert's factors under the head of every task."""

    about = "one expert's factors for every task, under that task's head: a row of the expert x task matrix"

    @classmethod
    def variants(cls, tasks: Sequence[str]) -> list[str]:
        """Return the tasks: one expert each."""
        return list(tasks)

    def fit(self, experiment: Experiment) -> None:
        """Count what is stored: one expert's factors, and all heads."""
        self._index = experiment.names.index(self.variant)
        chosen = experiment.system.experts[self._index : self._index + 1]
        self.facts.parameters = factor_count(chosen) + head_count(experiment.system.experts)

    def answer(self, experiment: Experiment, task: str) -> list[Answer | None]:
        """Answer under the task's own head."""
        _place_all(experiment)
        return list(experiment.validator("test", task).answers(experiment.expert(task).head, self._index))


@arms.register("oracle")
class Oracle(Arm):
    """Each task's own expert: what a router that never errs gives."""

    about = "each task's own expert and head: what a router that never errs gives"

    def fit(self, experiment: Experiment) -> None:
        """Count what is stored: everything."""
        experts = experiment.system.experts
        self.facts.parameters = factor_count(experts) + head_count(experts)
        self.facts.work = 1 + factor_work(experiment, experts) / len(experts)

    def answer(self, experiment: Experiment, task: str) -> list[Answer | None]:
        """Answer with the task's expert."""
        _place_all(experiment)
        index = experiment.names.index(task)
        return list(experiment.validator("test", task).answers(experiment.expert(task).head, index))


@arms.register("mixture")
class Mixture(Arm):
    """All experts' changes in equal parts in every layer, under the task's head."""

    about = "all experts' changes mixed in equal parts, under the task's head; equal to the exact mean of the changes"

    def fit(self, experiment: Experiment) -> None:
        """Count what is stored: everything."""
        experts = experiment.system.experts
        self.facts.parameters = factor_count(experts) + head_count(experts)
        self.facts.work = 1 + factor_work(experiment, experts)

    def answer(self, experiment: Experiment, task: str) -> list[Answer | None]:
        """Answer through the mixture."""
        _place_all(experiment)
        count = len(experiment.system.experts)

        def gates(positions: Sequence[int]) -> Gate:
            return SoftGate(torch.full((len(positions), count), 1 / count, device=experiment.base.device))

        return list(experiment.validator("test", task).answers(experiment.expert(task).head, 0, gates=gates))


@arms.register("ensemble")
class Ensemble(Arm):
    """The mean of the logits that the task's head gives over each expert in turn.

    The heads end in a linear layer, so the mean of the logits is the logits of the mean hidden state; a head with a
    layer before that, or one that writes text, has no such mean.
    """

    about = "the mean of the logits over all experts under the task's head; as many passes as there are experts"

    def applies(self, task: Task) -> bool:
        """Tell whether the head gives logits for a fixed set of classes."""
        return task.head in choosing_heads()

    def fit(self, experiment: Experiment) -> None:
        """Count what is stored: everything."""
        experts = experiment.system.experts
        self.facts.parameters = factor_count(experts) + head_count(experts)
        depth = min(expert.lora.trunk_depth for expert in experts)
        passes = len(experts) - (len(experts) - 1) * depth / experiment.base.depth
        self.facts.work = passes + factor_work(experiment, experts)

    def answer(self, experiment: Experiment, task: str) -> list[Answer | None]:
        """Decode the mean of what the experts make of each row; the trunk is run once."""
        _place_all(experiment)
        head = experiment.expert(task).head
        if not isinstance(head, EncoderHead) or not head.is_linear:
            raise ConfigError(
                f"the head of task {task!r} is not linear, so the mean of its logits is not that of the hidden "
                "states; leave the arm out with bench.arms=[..., -ensemble]"
            )
        return list(experiment.validator("test", task).ensemble(head, len(experiment.system.experts)))
