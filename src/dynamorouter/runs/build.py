"""From a run's settings to the plain values that bases, experts and phases are built from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dynamorouter.config.checks import check_names
from dynamorouter.config.schema import Config
from dynamorouter.data.complexity.config import ComplexityConfig
from dynamorouter.data.complexity.prepare import TierOptions
from dynamorouter.data.prepare import PrepareOptions
from dynamorouter.metrics.base import get_metric
from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.base import heads
from dynamorouter.model.text.prompts import prompt_form, prompts
from dynamorouter.tasks.task import Task
from dynamorouter.training.experts import CacheOptions
from dynamorouter.training.learner import ExpertPlan
from dynamorouter.training.loop import LoopOptions
from dynamorouter.utils.devices import pick_device, pick_dtype

ALL = 10**9
"""More rows than there are."""


def run_tasks(config: Config) -> list[Task]:
    """Return the tasks, in the order of their experts."""
    tasks = source_tasks(config)
    if config.complexity is None:
        return tasks
    # tiers are local data of the run's own, whatever they were made of
    return [task.model_copy(update={"sources": {"local": {}}}) for task in tasks]


def source_tasks(config: Config) -> list[Task]:
    """Return the tasks as their data is found, which for tiers is one data set for all of them.

    Raises:
        ConfigError: a task is wrong, or there is no such prompt format.
        MissingExtraError: a metric needs a package that is not installed.
    """
    tasks = list(config.task.values())
    check_names(tasks)
    for form in {config.base.prompt, *(base.prompt for base in config.bases.values())}:
        prompts.get(form)
    for task in tasks:
        prompts.get(prompt_form(task, config.base_of(task)))
        for name in task.metrics:
            get_metric(name)  # before any work, and not when it is done
    return tasks


def tier_options(config: Config, settings: ComplexityConfig) -> TierOptions:
    """Return how rows get their tier."""
    return TierOptions(settings, config.data.filters, config.data.leaks, config.seed)


def prepare_options(config: Config) -> PrepareOptions:
    """Return how much data is prepared, before each task's own number of train rows."""
    evaluation = config.evaluation
    return PrepareOptions(
        seed=config.seed,
        router_rows=config.router.train_rows or ALL,
        joint_rows=(config.joint.train_rows or ALL) if config.joint.enabled else 0,
        select_rows=evaluation.select_rows,
        calibrate_rows=evaluation.calibrate_rows,
        report_rows=evaluation.report_rows or ALL,
        rows=config.data,
    )


def load_bases(config: Config) -> dict[str, Base]:
    """Load the default base, and those that tasks name, by their own names."""
    device = pick_device(config.device)
    dtype = pick_dtype(config.precision, device)
    return {spec.name: Base.load(spec, device=device, dtype=dtype) for spec in config.bases_in_use()}


def expert_plan(config: Config, task: Task) -> ExpertPlan:
    """Return how a task's expert is trained, its own ``hyper`` applied."""
    return ExpertPlan(task, config.expert(task.name), heads.get(task.head).base_options(config.base_of(task)))


def joint_plan(config: Config, task: Task) -> ExpertPlan:
    """Return how a task's expert is trained on in the joint phase."""
    plan = expert_plan(config, task)
    return replace(plan, config=config.joint.applied_to(plan.config, tasks=len(config.task)))


def loop_options(config: Config) -> LoopOptions:
    """Return what all experts of the run share."""
    experts = config.experts
    # on a GPU fewer and fuller rows pay
    packing = pick_device(config.device).type == "cuda" if experts.packing == "auto" else experts.packing
    return LoopOptions(
        tokens_per_batch=experts.tokens_per_batch,
        checkpoint_every=experts.checkpoint_every,
        seed=config.seed,
        packing=packing,
    )


def cache_options(config: Config, folder: Path) -> CacheOptions:
    """Return where the trunk's outputs are kept, ``folder`` being the place on disk."""
    cache = config.experts.trunk_cache
    limit = 0 if cache.where == "off" else cache.limit_mb << 20
    return CacheOptions(limit=limit, folder=folder if cache.where == "disk" else None)
