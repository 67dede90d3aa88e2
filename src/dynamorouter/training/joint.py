"""The joint phase: router and experts trained together on rows of all tasks.

With ``hard`` gates a row goes through its own task's expert, with a straight-through weight (Bengio et al., 2013):
its value is one, its gradient that of the router's probability, so that the task's loss teaches the router too.
With ``soft`` gates it goes through the router's mixture of all experts. The router's own loss, the cross-entropy of
the task, is added in both cases.

Letters: B batch, S positions, D width, E experts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dynamorouter.errors import ConfigError
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.gate import Gate
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.lora.gates import RowGate, SoftGate
from dynamorouter.model.lora.mount import mount
from dynamorouter.model.text.examples import TrainingExample
from dynamorouter.model.text.tokenize import Batch
from dynamorouter.model.text.trunk_cache import TrunkCache
from dynamorouter.routing.base import GradientRouter, Router, RouterInput
from dynamorouter.tasks.record import Record
from dynamorouter.training.config import JointConfig
from dynamorouter.training.experts import CacheOptions, Validator, collect, make_learners, make_validators
from dynamorouter.training.learner import ExpertPlan
from dynamorouter.training.log import UNLOGGED, TrainingLog
from dynamorouter.training.loop import LoopOptions, PackedLoop
from dynamorouter.training.placeholder import placeholder
from dynamorouter.utils.optim import Group, Optimizer
from dynamorouter.utils.progress import SILENT, Progress

Scores = Mapping[int, Sequence[float]]
"""A number for each row, by expert; NaN where it is not known."""
ROUTER_CLIP = 1.0
"""Largest norm of the router's gradient."""
ROUTER_DECAY = 0.01
"""Decoupled weight decay of the router."""


class JointRouter:
    """A task router in training beside the experts.

    Args:
        base: the base it reads.
        router: one with a gradient; it is trained in place.
        config: how.
        depth: the experts' trunk depth; the router must read no deeper.
        generative: experts whose examples hold the answer after the prompt.
        scores: a further target of the router, by expert and row; ``None`` where there is none.
    """

    def __init__(
        self,
        base: Base,
        router: GradientRouter,
        config: JointConfig,
        *,
        depth: int,
        generative: Collection[int] = (),
        scores: Scores | None = None,
    ) -> None:
        self.base, self.router, self.config, self.depth, self.scores = base, router, config, depth, scores
        self.generative = frozenset(generative)
        self.parameters = [p for p in router.module.parameters() if p.requires_grad]
        group = Group(self.parameters, config.router_rate, ROUTER_DECAY)
        self.optimizer = Optimizer([group], clip=ROUTER_CLIP)
        self._rows = 1
        self._loss = 0.0

    def begin(self, rows: int) -> None:
        """Take note of the number of rows in the coming step."""
        self._rows = rows

    def learns(self, turn: int) -> tuple[bool, bool]:
        """Tell whether the router, and whether the experts, step in a round."""
        return (True, True) if self.config.order == "together" else (turn % 2 == 0, turn % 2 == 1)

    def gate(
        self, batch: Batch, experts: Tensor, examples: Sequence[TrainingExample]
    ) -> tuple[Gate, Tensor, Tensor, int]:
        """Read the trunk, and return the gate, the router's share of its mean loss, and the trunk's states.

        Of an example that holds its answer the router reads the prompt alone.
        """
        with torch.no_grad():
            states = self.base.forward_to(
                batch, max(self.depth, *self.router.layers), keep=(self.depth, *self.router.layers)
            )
        read = {layer: states[layer] for layer in self.router.layers}
        texts = [("", None)] * experts.shape[0]
        scores = None
        if self.scores is not None:
            row_scores = [self.scores[example.expert][example.row] for example in examples]
            scores = torch.tensor(row_scores, device=self.base.device)
        router_input = RouterInput(states=read, mask=self._prompts(batch.mask, examples), texts=texts)
        logits, mean = self.router.losses(router_input, experts, scores)
        loss = mean * (experts.shape[0] / self._rows)
        self._loss += float(loss.detach())
        probabilities = logits.softmax(dim=1)
        gate: Gate
        if self.config.gates == "soft":
            gate = SoftGate(probabilities)
        else:
            weight = probabilities.gather(1, experts[:, None])[:, 0]
            gate = RowGate(experts, 1 + weight - weight.detach())
        return gate, self.config.router_loss_weight * loss, states[self.depth], self.depth

    def _prompts(self, mask: Tensor, examples: Sequence[TrainingExample]) -> Tensor:
        """Return the mask ``(B, S)`` without the answers that a decoder's examples go on with."""
        if self.base.kind != "decoder" or not self.generative:
            return mask
        length = mask.shape[1]
        ends = [int(example.target[0]) if example.expert in self.generative else length for example in examples]
        columns = torch.arange(length, device=mask.device)
        return mask * (columns < torch.tensor(ends, device=mask.device)[:, None])

    def skip(self) -> tuple[float, float]:
        """Leave a step out; returns the mean loss of the rows since the last one, and 0 for the gradient's norm."""
        self.optimizer.forget()
        loss, self._loss = self._loss, 0.0
        return loss, 0.0

    def step(self, *, scale: float) -> tuple[float, float]:
        """Take an optimizer step, unless a gradient has overflowed.

        Args:
            scale: what the loss was multiplied by.

        Returns:
            The mean loss of the rows since the last step, and the gradient's norm before clipping, which is not finite
            when the step was left out.
        """
        norm = self.optimizer.step(scale=scale)
        loss, _ = self.skip()
        return loss, norm

    def state(self) -> dict[str, Tensor]:
        """Return weights and the optimizer's moments."""
        tensors = {f"w.{i}": parameter.detach().clone() for i, parameter in enumerate(self.parameters)}
        return {**tensors, **{f"m.{name}": value for name, value in self.optimizer.state().items()}}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what ``state`` returned."""
        for i, parameter in enumerate(self.parameters):
            parameter.data.copy_(tensors[f"w.{i}"])
        self.optimizer.restore({k.removeprefix("m."): v for k, v in tensors.items() if k.startswith("m.")})


def joint_router(router: Router | None) -> GradientRouter:
    """Return the router if it can be trained together with experts.

    Raises:
        ConfigError: it has no gradient.
    """
    if not isinstance(router, GradientRouter):
        raise ConfigError(
            f"the joint phase trains the router by gradient, but this one is {type(router).__name__}; "
            "choose router=mlp or router=complexity, or joint.enabled=false"
        )
    return router


def fit_joint(
    base: Base,
    experts: Sequence[Expert],
    router: GradientRouter,
    plans: Sequence[ExpertPlan],
    train: Mapping[str, Sequence[Record]],
    select: Mapping[str, Sequence[Record]],
    *,
    joint: JointConfig,
    options: LoopOptions,
    log: TrainingLog = UNLOGGED,
    scores: Scores | None = None,
    cache: CacheOptions | None = None,
    checkpoint: Path | None = None,
    progress: Progress = SILENT,
) -> list[Expert]:
    """Train experts and router on; an expert is changed only where its held-out score rises.

    Args:
        base: of the router; experts of another base are left as they are, but their rows teach the router.
        experts: in the order of the router's classes.
        router: trained in place.
        plans: how each expert is trained on.
        train: rows by task.
        select: held-out rows by task.
        joint: how the router is trained beside them.
        options: shared settings of the loop.
        log: told of losses, scores and checkpoints.
        scores: a further target of the router, by expert and row; NaN where it is not known.
        cache: where the trunk's outputs for the held-out rows are kept.
        checkpoint: file to resume from and to write to.
        progress: told how far it is.
    """
    plans_on_base = {i: plan for i, plan in enumerate(plans) if experts[i].base == base.spec.name}
    depth = min((experts[i].lora.trunk_depth for i in plans_on_base), default=0)
    placed = [expert if i in plans_on_base else placeholder(expert, base) for i, expert in enumerate(experts)]
    mounted = mount(base, placed, trainable=True)
    learners, examples = make_learners(mounted, placed, plans, train, seed=options.seed)
    budget, cache = options.tokens_per_batch, cache or CacheOptions()
    validators = make_validators(base, plans_on_base, select, depth=depth, budget=budget, cache=cache)
    generative = [i for i in validators if learners[i].head.appends_target]
    loop = PackedLoop(
        mounted,
        learners,
        examples,
        TrunkCache(base, examples, depth=0, limit=0, budget=budget),
        validators=validators,
        options=options,
        log=log,
        checkpoint=checkpoint,
        router=JointRouter(base, router, joint, depth=depth, generative=generative, scores=scores),
        progress=progress,
    )
    _train_on(loop, router, validators)
    trained = [collect(mounted, e, learners[i]) if i in plans_on_base else e for i, e in enumerate(experts)]
    mounted.close()
    return trained


def _train_on(loop: PackedLoop, router: GradientRouter, validators: Mapping[int, Validator]) -> None:
    """Run a loop from the experts' present scores on, the router in training mode meanwhile."""
    for i, validator in validators.items():
        loop.learners[i].progress.best = validator(loop.learners[i].head, i)
    router.module.train()
    loop.run(label="joint")
    router.module.eval()
    for validator in validators.values():
        validator.cache.close()
