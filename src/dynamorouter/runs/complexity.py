"""What tiers of complexity bring, measured on a run's own rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynamorouter.config.schema import Config
from dynamorouter.data.complexity.record import complexities
from dynamorouter.data.prepare import PreparedData
from dynamorouter.evaluation.complexity import ONE, arm_losses, compare, route_rows, routing_scores, text_losses
from dynamorouter.inference.engine import Engine
from dynamorouter.inference.policy import Assignment
from dynamorouter.model.base.base import Base
from dynamorouter.model.lora.expert import Expert
from dynamorouter.runs.build import cache_options, expert_plan, loop_options, run_tasks
from dynamorouter.system.library import Library
from dynamorouter.system.system import System
from dynamorouter.training.experts import fit_experts
from dynamorouter.training.learner import ExpertPlan
from dynamorouter.utils.progress import SILENT, Progress


def joint_scores(data: PreparedData, names: Sequence[str]) -> dict[int, list[float]] | None:
    """Return the complexity of each row of the joint phase, by expert; ``None`` where none is known."""
    scores_by_expert = {index: complexities(data.split("joint", name)) for index, name in enumerate(names)}
    scored = any(not math.isnan(score) for scores in scores_by_expert.values() for score in scores)
    return scores_by_expert if scored else None


def complexity_report(
    config: Config,
    out: Path,
    system: System,
    data: PreparedData,
    *,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Return the part ``complexity`` of a report.

    Args:
        config: settings with ``complexity``.
        out: folder of the run; the one LoRA is kept under ``phases/``.
        system: with experts of all tiers and a router.
        data: prepared rows.
        progress: told how far it is.
    """
    names = system.names
    test = {name: data.split("test", name) for name in names}
    rows = [record for name in names for record in test[name]]
    tiers = np.repeat(np.arange(len(names)), [len(test[name]) for name in names])
    routed = route_rows(system, rows)
    train = {name: data.split("train", name) for name in names}
    report: dict[str, Any] = {
        "rows": {name: {"train": len(train[name]), "report": len(test[name])} for name in names},
        "routing": routing_scores(names, tiers, routed, rows, train),
        "latency_ms": routed.milliseconds,
    }
    if config.complexity is None or not config.complexity.arms:
        return report
    losses = arm_losses(system, rows, tiers, routed)
    base = system.bases[system.router_base]
    single_lora = one_lora(config, out, base, data, names, progress=progress)
    name, budget = system.router_base, system.tokens_per_batch
    alone = Engine({name: base}, [single_lora], router_base=name, budget=budget)
    losses[ONE] = text_losses(alone, rows, Assignment.fixed([0] * len(rows)))
    alone.close()
    parameters = {"tiers": sum(expert.parameters() for expert in system.experts), ONE: single_lora.parameters()}
    options = {"seed": config.seed, "resamples": config.evaluation.bootstrap}
    return {**report, "parameters": parameters, **compare(losses, tiers, names, **options)}


def one_lora(
    config: Config, out: Path, base: Base, data: PreparedData, names: Sequence[str], *, progress: Progress
) -> Expert:
    """Return the one expert of all tiers: as many numbers as theirs together, the same rows, the same epochs.

    It is trained unless the run has it already, and goes on from its own checkpoint.
    """
    library = Library(out / "phases" / ONE)
    first = run_tasks(config)[0]
    if ONE in library.names():
        return library.load(ONE, base)
    plan = expert_plan(config, first)
    plans = [expert_plan(config, task) for task in run_tasks(config)]
    rank = sum(tier_plan.config.rank for tier_plan in plans)
    changes: dict[str, Any] = {"rank": rank, "alpha": plan.config.alpha * rank / plan.config.rank}  # the same scaling
    if config.complexity and config.complexity.arm_epochs:
        changes["epochs"] = config.complexity.arm_epochs
    plan = ExpertPlan(first.model_copy(update={"name": ONE}), plan.config.model_copy(update=changes), plan.head_options)
    parts = ("train", "joint") if config.joint.enabled else ("train",)
    train = [record for name in names for part in parts for record in data.split(part, name)]
    select = [record for name in names for record in data.split("validation", name)]
    (expert,) = fit_experts(
        base,
        [plan],
        {ONE: train},
        {ONE: select},
        options=loop_options(config),
        cache=cache_options(config, out / "phases" / "trunk"),
        checkpoint=out / "phases" / f"{ONE}.checkpoint",
        progress=progress,
    )
    library.add(expert, base)
    (out / "phases" / f"{ONE}.checkpoint").unlink(missing_ok=True)
    return expert
