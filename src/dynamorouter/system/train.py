"""A further expert of a system, trained on rows of its task while the others stay as they are.

Where rows are few all of them train, and what is said of the expert comes from others like it, each of which was
trained without a part of the rows and answers that part (cross-validation: Stone, 1974).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dynamorouter.data.split import draw
from dynamorouter.inference.engine import Engine
from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.base import heads
from dynamorouter.model.lora.expert import Expert
from dynamorouter.system.opened import OpenSystem
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.kinds import head_kind
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task
from dynamorouter.training.config import ExpertConfig
from dynamorouter.training.experts import fit_experts
from dynamorouter.training.learner import ExpertPlan
from dynamorouter.training.loop import LoopOptions
from dynamorouter.utils.progress import SILENT, Progress

FEW = 80
"""Rows below which all train a new expert, and its score comes from cross-validation."""
HELD_ROWS = 500
"""Most rows that are held out of the training."""
FOLDS = 4
"""Parts that few rows are cut into."""
LEAST_STEPS = 40
"""Optimizer steps that few rows are trained for, at the least."""
HEAD_RATE = 0.01
"""Learning rate of a new head, at the least, where rows are few: the factors would else learn them by heart first."""


def expert_plan(system: OpenSystem, task: Task, base: Base, settings: ExpertConfig | None, *, rows: int) -> ExpertPlan:
    """Return how an expert that joins a system is trained: from the blocks up where the others begin.

    Args:
        system: that it joins.
        task: what it learns, with its own changes of the settings.
        base: the base that it sits on.
        settings: as they were asked for; what was not asked for goes by the system and the number of rows.
        rows: how many it learns from.
    """
    settings = ExpertConfig() if settings is None else settings
    depths = [e.lora.trunk_depth for e in system.experts if e.base == base.spec.name]
    fitting: dict[str, float] = {"trunk_depth": min([base.depth // 2, *depths])}
    steps_per_epoch = -(-rows // settings.step_rows)
    fitting["epochs"] = max(settings.epochs, -(-LEAST_STEPS // steps_per_epoch))
    if rows < FEW:
        fitting["head_learning_rate"] = max(HEAD_RATE, settings.learning_rate)
    asked = {*settings.model_fields_set, *task.hyper}
    changes = {name: value for name, value in fitting.items() if name not in asked} | dict(task.hyper)
    config = ExpertConfig.model_validate({**settings.model_dump(), **changes})
    return ExpertPlan(task, config, head_options(system, task, base))


def head_options(system: OpenSystem, task: Task, base: Base) -> dict[str, Any]:
    """Return the options of a new head: those of one that was trained in this system, else as the base says."""
    alike = [e for e in system.experts if (e.task.head, e.base) == (task.head, base.spec.name)]
    trained = [e.head.options for e in alike if "source" not in e.card]
    return dict(trained[0]) if trained else heads.get(task.head).base_options(base.spec)


def train_expert(
    base: Base,
    plan: ExpertPlan,
    train: Sequence[Record],
    select: Sequence[Record],
    *,
    name: str,
    seed: int,
    progress: Progress = SILENT,
) -> Expert:
    """Train one expert over a base, from which other experts are displaced meanwhile.

    Args:
        base: the frozen base.
        plan: what it learns, and how.
        train: rows to learn from.
        select: rows that decide on the best epoch.
        name: of the expert.
        seed: of weights and order.
        progress: told how far it is.
    """
    (expert,) = _fit(base, {plan.task.name: plan}, {plan.task.name: train}, {plan.task.name: select}, seed, progress)
    return dataclasses.replace(expert, name=name)


def split_rows(
    records: Sequence[Record], held: Sequence[Record] | None, task: Task, most: Any, *, seed: int
) -> tuple[list[Record], list[Record], tuple[str, ...]]:
    """Draw rows to learn from and rows to score on.

    Args:
        records: of one task.
        held: rows to score on, where they are given.
        task: theirs.
        most: most rows to learn from, or that by task (see ``ExpertConfig.train_rows``).
        seed: of the draw.

    Returns:
        Both, and a sentence on the rows that are neither, if there are any.
    """
    limit = most.get(task.name, most.get("default")) if isinstance(most, dict) else most
    limit = len(records) if limit is None else limit
    sizes = {
        "held": 0 if held is not None else max(1, min(HELD_ROWS, len(records) // (4 if len(records) < FEW else 10)))
    }
    sizes["train"] = min(limit, len(records) - sizes["held"])
    parts, left = draw(records, sizes, kind=head_kind(task.head), seed=seed, purpose="add")
    note = f"{len(left)} of {len(records)} rows were not used: it learns from {limit} at most (experts.train_rows)"
    return parts["train"], list(parts["held"] if held is None else held), (note,) if left else ()


def cross_answers(
    base: Base, plan: ExpertPlan, records: Sequence[Record], *, seed: int, progress: Progress = SILENT
) -> list[tuple[Record, Answer | None]]:
    """Return each row with what an expert answers to it that was trained on the other parts of the rows.

    Args:
        base: the frozen base.
        plan: what the experts learn, and how.
        records: at least as many rows as there are parts.
        seed: of weights, order and parts.
        progress: told how far it is.
    """
    task, size = plan.task, -(-len(records) // FOLDS)
    sizes = {f"{task.name}-{fold}": size for fold in range(FOLDS)}
    parts, _ = draw(records, sizes, kind=head_kind(task.head), seed=seed, purpose="cross")
    parts = {name: part for name, part in parts.items() if part}
    plans = {name: dataclasses.replace(plan, task=task.model_copy(update={"name": name})) for name in parts}
    others = {name: [row for other, part in parts.items() if other != name for row in part] for name in parts}
    experts = _fit(base, plans, others, others, seed, progress)
    engine = Engine({base.spec.name: base}, experts, router_base=base.spec.name, budget=plan.config.tokens_per_batch)
    answered: list[tuple[Record, Answer | None]] = []
    for index, expert in enumerate(experts):
        answered += zip(
            parts[expert.name], expert_answers(engine, index, parts[expert.name], progress=progress), strict=True
        )
    engine.close()
    return answered


def expert_answers(
    engine: Engine, index: int, records: Sequence[Record], *, progress: Progress = SILENT
) -> list[Answer | None]:
    """Return what an expert answers to rows, with the loss of the target where it writes."""
    progress.start(f"score {engine.experts[index].name}", len(records))
    answers: dict[int, Answer | None] = {}
    rows = [(record.text, record.pair) for record in records]
    for positions, assignment, chunk_answers in engine.answers(rows, [index] * len(rows)):
        losses = engine.losses([records[position] for position in positions], assignment)
        for position, answer, loss in zip(positions, chunk_answers, losses, strict=True):
            if answer is not None and loss is not None:
                answer = dataclasses.replace(answer, nll=loss[0], tokens=loss[1])
            answers[position] = answer
        progress.advance(len(positions))
    return [answers[position] for position in range(len(rows))]


def _fit(
    base: Base,
    plans: Mapping[str, ExpertPlan],
    train: Mapping[str, Sequence[Record]],
    select: Mapping[str, Sequence[Record]],
    seed: int,
    progress: Progress,
) -> list[Expert]:
    config = next(iter(plans.values())).config
    return fit_experts(
        base,
        list(plans.values()),
        train,
        select,
        options=LoopOptions(tokens_per_batch=config.tokens_per_batch, seed=seed),
        progress=progress,
    )
