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
from dynamorouter.model.base.config import BaseSpec
from dynamorouter.model.heads.base import heads
from dynamorouter.model.text.prompts import prompts
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
        prompts.get(task.prompt or config.base.prompt)
        for name in task.metrics:
            get_metric(name)  # before any work, and not when it is done
    return tasks


def tier_options(config: Config, settings: ComplexityConfig) -> TierOptions:
    """Return how rows get their tier."""
    return TierOptions(settings, config.data.filters, config.data.leaks, config.seed)


def prepare_options(config: Config) -> PrepareOptions:
    """Return how much data is prepared, before each task's own number of train rows."""
    filters, evaluation = config.data.filters, config.evaluation
    return PrepareOptions(
        seed=config.seed,
        router_rows=config.router.train_rows or ALL,
        joint_rows=(config.joint.train_rows or ALL) if config.joint.enabled else 0,
        select_rows=evaluation.select_rows,
        calibrate_rows=evaluation.calibrate_rows,
        report_rows=evaluation.report_rows or ALL,
        leaks=config.data.leaks,
        when_short=config.data.when_short,
        max_chars=filters.max_chars,
        max_words=filters.max_words,
        skip_bad=filters.skip_bad,
        unknown_labels=filters.unknown_labels,
        augment=config.data.augment,
    )


def base_settings(config: Config, task: Task) -> BaseSpec:
    """Return the base model of a task's expert: the default one, or that which the task names."""
    if task.base is None or task.base == config.base.name:
        return config.base
    return config.bases[task.base]


def bases_in_use(config: Config) -> list[BaseSpec]:
    """Return the default base, and those that tasks name, each once."""
    named = [config.bases[task.base] for task in config.task.values() if task.base and task.base != config.base.name]
    return list({settings.name: settings for settings in (config.base, *named)}.values())


def load_bases(config: Config) -> dict[str, Base]:
    """Load the default base, and those that tasks name, by their own names."""
    device = pick_device(config.device)
    dtype = pick_dtype(config.precision, device)
    return {settings.name: Base.load(settings, device=device, dtype=dtype) for settings in bases_in_use(config)}


def expert_plan(config: Config, task: Task) -> ExpertPlan:
    """Return how a task's expert is trained, its own ``hyper`` applied."""
    head_options = heads.get(task.head).base_options(base_settings(config, task))
    return ExpertPlan(task, config.expert(task.name), head_options)


def joint_plan(config: Config, task: Task) -> ExpertPlan:
    """Return how a task's expert is trained on in the joint phase."""
    joint, plan = config.joint, expert_plan(config, task)
    changes = {
        "epochs": joint.epochs,
        "learning_rate": joint.learning_rate,
        "head_learning_rate": None,
        "weight_decay": joint.weight_decay,
        "warmup": joint.warmup,
        "batch_rows": max(1, joint.batch_rows // len(config.task)),
        "accumulation": 1,
    }
    return replace(plan, config=plan.config.model_copy(update=changes))


def loop_options(config: Config) -> LoopOptions:
    """Return what all experts of the run share."""
    return LoopOptions(
        tokens_per_batch=config.experts.tokens_per_batch,
        checkpoint_every=config.experts.checkpoint_every,
        seed=config.seed,
        packing=_packs(config),
    )


def _packs(config: Config) -> bool:
    """Tell whether short rows share sequences: by itself on a GPU, where fewer and fuller rows pay."""
    packing = config.experts.packing
    return pick_device(config.device).type == "cuda" if packing == "auto" else packing


def cache_options(config: Config, folder: Path) -> CacheOptions:
    """Return where the trunk's outputs are kept, ``folder`` being the place on disk."""
    settings = config.experts.trunk_cache
    limit = 0 if settings.where == "off" else settings.limit_mb << 20
    return CacheOptions(limit=limit, folder=folder if settings.where == "disk" else None)
