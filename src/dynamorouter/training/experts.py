"""The expert phase: one LoRA expert and head per task, all trained side by side on one frozen base."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.base import build_head
from dynamorouter.model.lora.expert import Expert, fresh_factors
from dynamorouter.model.lora.mount import Mounted, mount
from dynamorouter.model.text.examples import TrainingExample, make_examples
from dynamorouter.model.text.trunk_cache import CacheOptions, TrunkCache
from dynamorouter.tasks.record import Record
from dynamorouter.training.learner import ExpertLearner, ExpertPlan
from dynamorouter.training.log import UNLOGGED, TrainingLog
from dynamorouter.training.loop import LoopOptions, PackedLoop
from dynamorouter.training.validate import Validator
from dynamorouter.utils.progress import SILENT, Progress
from dynamorouter.utils.seeding import seeded

__all__ = ["CacheOptions", "Validator", "collect", "fit_experts", "fresh_expert", "make_learners", "make_validators"]


def fit_experts(
    base: Base,
    plans: Sequence[ExpertPlan],
    train: Mapping[str, Sequence[Record]],
    select: Mapping[str, Sequence[Record]],
    *,
    options: LoopOptions,
    log: TrainingLog = UNLOGGED,
    cache: CacheOptions | None = None,
    checkpoint: Path | None = None,
    start: Sequence[Expert] | None = None,
    progress: Progress = SILENT,
) -> list[Expert]:
    """Train one expert per plan, packed, and return them.

    Args:
        base: the frozen base; the experts are mounted on it meanwhile.
        plans: one per task, all with the same trunk depth.
        train: rows by task.
        select: held-out rows by task, for early stopping and the choice of the best epoch.
        options: shared settings.
        log: told of losses, scores and checkpoints.
        cache: where the trunk's outputs are kept.
        checkpoint: file to resume from and to write to.
        start: experts to go on from instead of fresh ones.
        progress: told how far it is.
    """
    cache = cache or CacheOptions()
    depth = min(plan.config.trunk_depth for plan in plans)
    experts = list(start) if start else [fresh_expert(base, plan, seed=options.seed) for plan in plans]
    mounted = mount(base, experts, trainable=True)
    learners, examples = make_learners(mounted, experts, plans, train, seed=options.seed)
    budget = options.tokens_per_batch
    validators = make_validators(base, dict(enumerate(plans)), select, depth=depth, budget=budget, cache=cache)
    file = cache.folder / "train" if cache.folder else None
    trunk = TrunkCache(base, examples, depth=depth, limit=cache.limit, budget=budget, file=file)
    trunk.fill()
    loop = PackedLoop(
        mounted,
        learners,
        examples,
        trunk,
        validators=validators,
        options=options,
        log=log,
        checkpoint=checkpoint,
        progress=progress,
    )
    loop.run(label=f"experts of {base.spec.name}" if len(plans) > 1 else f"expert {plans[0].task.name}")
    for outputs in (trunk, *(validator.cache for validator in validators.values())):
        outputs.close()
    trained = [collect(mounted, expert, learners[index]) for index, expert in enumerate(experts)]
    mounted.close()
    return trained


def make_learners(
    mounted: Mounted,
    experts: Sequence[Expert],
    plans: Sequence[ExpertPlan],
    train: Mapping[str, Sequence[Record]],
    *,
    seed: int,
) -> tuple[list[ExpertLearner], list[TrainingExample]]:
    """Return a learner for each of the mounted experts, with the examples of all."""
    base = mounted.base
    examples: list[TrainingExample] = []
    learners: list[ExpertLearner] = []
    for index, (expert, plan) in enumerate(zip(experts, plans, strict=True)):
        head = expert.head.to(base.device).requires_grad_(True)
        task_examples = make_examples(base, head, plan.task, train[plan.task.name], expert=index)
        positions = range(len(examples), len(examples) + len(task_examples))
        examples += task_examples
        learners.append(ExpertLearner(index, plan, head, mounted, positions, seed=seed))
    return learners, examples


def make_validators(
    base: Base,
    plans: Mapping[int, ExpertPlan],
    select: Mapping[str, Sequence[Record]],
    *,
    depth: int,
    budget: int,
    cache: CacheOptions,
) -> dict[int, Validator]:
    """Return what scores each planned expert on its held-out rows, by the expert's index."""
    return {
        index: Validator(
            base,
            plan.task,
            select[plan.task.name],
            depth=depth,
            budget=budget,
            cache=cache,
            select_by=plan.config.select_by,
        )
        for index, plan in plans.items()
    }


def fresh_expert(base: Base, plan: ExpertPlan, *, seed: int) -> Expert:
    """Draw a new expert; its weights depend on the seed and the task's name alone."""
    head = build_head(plan.task, base.width, plan.head_options)
    head.initialise(seeded(seed, plan.task.name, "head"))
    factors = fresh_factors(base, plan.config.lora, seed=seed, name=plan.task.name)
    return Expert(plan.task.name, plan.task, base.spec.name, factors, head, plan.config.lora)


def collect(mounted: Mounted, expert: Expert, learner: ExpertLearner) -> Expert:
    """Read a trained expert back out of the banks."""
    factors = mounted.factors(expert.name)
    progress = learner.progress
    training = {"steps": progress.step, "epochs": progress.epoch, "select_score": round(progress.best, 6)}
    head = learner.head.eval().requires_grad_(False)
    return dataclasses.replace(expert, factors=factors, head=head, card={**expert.card, "training": training})
