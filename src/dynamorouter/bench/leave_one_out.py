"""A task that no expert was trained on: leave one task out, and give it a head on a few of its rows.

The head, where it has weights, is trained alike over each frozen body: the bare base, merges of the other experts,
the mixture of the other experts that a router makes for the task, and, as the upper end, the task's own expert. Scores
are on test rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dynamorouter.bench.experiment import Experiment, primary_numbers
from dynamorouter.merging.merge import merge_experts
from dynamorouter.metrics.base import get_metric
from dynamorouter.metrics.bootstrap import Array, bootstrap_ci, bootstrap_difference
from dynamorouter.model.base.gate import Gate
from dynamorouter.model.heads.base import build_head
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.lora.gates import SoftGate
from dynamorouter.model.text.passes import Gates
from dynamorouter.system.router import RouterRows, fit_system_router
from dynamorouter.system.system import System
from dynamorouter.tasks.kinds import head_kind
from dynamorouter.tasks.record import Record
from dynamorouter.training.multitask import FrozenBackbone, TaskHead, fit_shared, one_for_all, shared_examples
from dynamorouter.utils.seeding import seeded

EPOCHS = 30
"""Passes over the few rows."""
ROUTER_ROWS = 100
"""Rows of each other task that the router is fitted on."""
MERGES = ("linear", "task_arithmetic", "ties")


def leave_one_out(experiment: Experiment, task: str) -> dict[str, Any]:
    """Return the score of each body on a task left out, and the difference to the bare base with its interval."""
    rows = experiment.rows("train", task, experiment.config.bench.studies.unseen_rows)
    others = [expert for expert in experiment.system.experts if expert.task.name != task]
    weights = route_weights(experiment, others, rows)
    numbers_by_body: dict[str, Array] = {"base": _score_body(experiment, task, rows, [])}
    for method in MERGES:
        result = merge_experts(others, method=method, seed=experiment.seed)
        merged = dataclasses.replace(others[0], factors=dict(result.factors), fusion=None)
        numbers_by_body[f"merge/{method}"] = _score_body(experiment, task, rows, [merged])
    numbers_by_body["router"] = _score_body(experiment, task, rows, others, weights)
    numbers_by_body["own expert"] = _score_body(experiment, task, rows, [experiment.expert(task)])
    reduce = get_metric(experiment.expert(task).task.metrics[0]).reduce
    resamples, level = experiment.config.bench.resamples, experiment.config.bench.level
    results = {}
    for name, numbers in numbers_by_body.items():
        gain = bootstrap_difference(numbers, numbers_by_body["base"], reduce, seed=0, resamples=resamples, level=level)
        results[name] = {
            "value": float(reduce(numbers.sum(axis=0))),
            "interval": bootstrap_ci(numbers, reduce, seed=0, resamples=resamples, level=level),
            "over_base": {"value": gain.value, "low": gain.low, "high": gain.high},
        }
    shares = dict(zip((expert.name for expert in others), weights.tolist(), strict=True))
    return {"rows": len(rows), "bodies": results, "route": {name: round(share, 4) for name, share in shares.items()}}


def route_weights(experiment: Experiment, others: list[Expert], rows: list[Record]) -> torch.Tensor:
    """Fit a router to the other experts, and return its mean probabilities on rows of the task left out, ``(E,)``."""
    name = experiment.system.router_base
    system = System({name: experiment.base}, others, None, router_base=name)
    train = {expert.name: experiment.rows("router", expert.task.name, ROUTER_ROWS) for expert in others}
    fit_system_router(system, experiment.config.router.model_dump(), RouterRows(train, {}), seed=experiment.seed)
    total = torch.zeros(len(others))
    with torch.inference_mode():
        for _, chunk in system.engine.chunks([(record.text, record.pair) for record in rows]):
            total += system.engine.route(chunk).probabilities.float().cpu().sum(dim=0)
    system.engine.close()
    return total / len(rows)


def _score_body(
    experiment: Experiment, task: str, rows: list[Record], experts: list[Expert], weights: torch.Tensor | None = None
) -> Array:
    """Train a head on the few rows over frozen experts, and return its numbers on the test rows, ``(N, K)``."""
    expert = experiment.expert(task)
    experiment.install(
        [dataclasses.replace(other, fusion=None) for other in experts] or _no_change(experiment), key=object()
    )
    device = experiment.base.device

    def gates(positions: Sequence[int]) -> Gate:
        if weights is None:
            return one_for_all(len(positions), device)
        return SoftGate(weights.to(device).expand(len(positions), -1))

    head = build_head(expert.task, experiment.base.width, expert.head.options)
    head.initialise(seeded(experiment.seed, task, "unseen")).to(device)
    task_head = TaskHead(expert.task, head, rows)
    if not head_kind(expert.task.head).is_generative:
        _train_head(experiment, task_head, gates)
    answers = experiment.validator("test", task).answers(head, 0, gates=gates)
    return np.asarray(primary_numbers(expert.task, answers, experiment.rows("test", task)))


def _train_head(experiment: Experiment, task_head: TaskHead, gates: Gates) -> None:
    """Train a head over what lies in the banks."""
    settings = experiment.config.expert(task_head.task.name)
    examples = shared_examples(experiment.base, [task_head])
    body = FrozenBackbone(
        experiment.base,
        examples,
        gates=lambda chosen: gates(range(len(chosen))),
        limit=settings.trunk_cache.limit_mb << 20,
        budget=settings.tokens_per_batch,
    )
    config = settings.model_copy(update={"epochs": EPOCHS})
    fit_shared(body, [task_head], examples, config=config, seed=experiment.seed)
    body.cache.close()


def _no_change(experiment: Experiment) -> list[Expert]:
    """Return one expert that changes nothing."""
    return [dataclasses.replace(experiment.system.experts[0], factors={}, fusion=None)]
