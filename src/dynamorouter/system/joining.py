"""An expert joins a system in memory: it is trained on rows or imported, scored on rows it did not learn from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dynamorouter.config.bases import find_base
from dynamorouter.config.tasks import find_task
from dynamorouter.data.dedup import check_classes
from dynamorouter.data.rows import as_records
from dynamorouter.data.split import draw
from dynamorouter.errors import DataError, LibraryError
from dynamorouter.metrics.base import get_metric, row_statistics
from dynamorouter.metrics.bootstrap import bootstrap_ci
from dynamorouter.model.base.base import Base
from dynamorouter.system.importing import Imported, NewExpert, check_label_order, import_expert
from dynamorouter.system.opened import OpenSystem, undone_on_failure
from dynamorouter.system.routes import keep_skill
from dynamorouter.system.train import FEW, cross_answers, expert_answers, expert_plan, split_rows, train_expert
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.kinds import head_kind
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task
from dynamorouter.training.config import ExpertConfig
from dynamorouter.utils.files import checked_name
from dynamorouter.utils.progress import SILENT, Progress

HELD_ROWS, HELD_TEXTS = 500, 32
"""Most rows that an expert is scored on, and that is so where it writes texts."""
LEAST_ROWS = 4
"""Rows without which nothing can be learned and scored."""


@dataclass(frozen=True, slots=True)
class AddedExpert:
    """An expert that joined a system.

    Attributes:
        name: its name.
        task: what it answers.
        matched_layers: linear layers of the base that it changes.
        delta_norm: Frobenius norm of all its changes together.
        metric: name of the task's headline metric.
        score: by that metric, on ``scored_rows`` rows that it did not learn from here; ``None`` where there were none.
        interval: where the score lies, 95 %.
        scored_rows: how many rows it was scored on.
        train_rows: how many rows it, or its head, learned from here.
        notes: what a user should know, a sentence each.
    """

    name: str
    task: Task
    matched_layers: int
    delta_norm: float
    metric: str
    score: float | None
    interval: tuple[float, float] | None
    scored_rows: int
    train_rows: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Say the score in one line."""
        if self.score is None or self.interval is None:
            return f"{self.name}: not scored, as no rows were given"
        low, high = self.interval
        return f"{self.name}: {self.metric} {self.score:.3f} [{low:.3f}, {high:.3f}] on {self.scored_rows} rows"


def add_expert(
    system: OpenSystem,
    name: str,
    *,
    task: Task | str | Path,
    rows: Iterable[Any] | None = None,
    held_out: Iterable[Any] | None = None,
    adapter: str | Path | None = None,
    labels: Sequence[str] | None = None,
    settings: ExpertConfig | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> AddedExpert:
    """Train an expert on rows, or import one; the others stay as they are, and the router is left to ``fit_router``.

    Args:
        system: that it joins.
        name: of the new expert.
        task: what it answers: a task, the name of one, or the path of its YAML file.
        rows: of the task: a ``datasets.Dataset``, a data frame, mappings by the task's columns, or records. An adapter
            that has its head needs none, but is then neither scored nor known to the router.
        held_out: further rows, which it is scored on; by default some of ``rows``.
        adapter: a folder that PEFT wrote, or its hub id; ``None`` trains a new expert.
        labels: names of the outputs of the adapter's head, in their order, where its folder does not say.
        settings: how a new expert is trained; by default as in recipes, and for longer where rows are few.
        seed: of weights and draws.
        progress: told how far it is.

    Raises:
        AdapterError: the adapter cannot be represented exactly, is of another base, or its labels are in disorder.
        LibraryError: the name is taken, or is no file name.
        DataError: a row cannot be used, or there are too few.
    """
    checked_name(name, kind="expert name")
    if name in system.names:
        raise LibraryError(f"the system has an expert {name!r} already; remove it first, or give another name")
    task = task if isinstance(task, Task) else find_task(str(task))
    base = base_of(system, task)
    records = [] if rows is None else as_records(rows, task, where=f"rows of {name!r}")
    held = None if held_out is None else as_records(held_out, task, where=f"held-out rows of {name!r}")
    if adapter is None or rows is not None:
        _check_enough(task, records, name, is_trained=adapter is None)
    with undone_on_failure(system):
        if adapter is None:
            joining = _trained(system, name, task, base, records, held, settings, seed=seed, progress=progress)
        else:
            joining = import_expert(
                system, name, task, base, adapter, records, held, labels=labels, seed=seed, progress=progress
            )
        expert, notes = joining.expert, joining.notes
        system.use_experts([*system.experts, expert], {**system.bases, base.spec.name: base})
        if records:
            keep_skill(system, name, records)
        answered = joining.answered
        if answered is None:
            answered = _answered(system, _scored_rows(joining.held, task, seed=seed), progress=progress)
        if isinstance(joining, Imported):
            notes = (*notes, *check_label_order(task, answered, joining, where=str(adapter)))
        system.seen.add(name, [*records, *(held or [])])
    return _described(joining, answered, notes, seed=seed)


def _described(
    joining: NewExpert, answered: Sequence[tuple[Record, Answer | None]], notes: tuple[str, ...], *, seed: int
) -> AddedExpert:
    """Say what joined, and how it does."""
    expert = joining.expert
    score, interval = score_of(expert.task, answered, seed=seed) if answered else (None, None)
    return AddedExpert(
        expert.name,
        expert.task,
        len(expert.factors),
        math.sqrt(sum(change.squared_norm() for change in expert.factors.values())),
        expert.task.metrics[0],
        score,
        interval,
        len(answered),
        len(joining.train),
        notes,
    )


def _check_enough(task: Task, records: Sequence[Record], name: str, *, is_trained: bool) -> None:
    """Refuse rows that nothing can be learned from.

    Raises:
        DataError: there are too few, or all are of one class.
    """
    if len(records) < LEAST_ROWS:
        raise DataError(
            f"there are {len(records)} rows for expert {name!r}; give at least {LEAST_ROWS}, better a few dozen"
        )
    if is_trained:
        check_classes(task, records, where=f"rows of {name!r}")


def _answered(
    system: OpenSystem, records: Sequence[Record], *, progress: Progress
) -> list[tuple[Record, Answer | None]]:
    """Let the last expert answer rows."""
    answers = expert_answers(system.engine, len(system.experts) - 1, records, progress=progress)
    return list(zip(records, answers, strict=True))


def _trained(
    system: OpenSystem,
    name: str,
    task: Task,
    base: Base,
    records: list[Record],
    held: list[Record] | None,
    settings: ExpertConfig | None,
    *,
    seed: int,
    progress: Progress,
) -> NewExpert:
    """Train an expert; all of a few rows teach it, and its score then comes from cross-validation."""
    plan = expert_plan(system, task, base, settings, rows=len(records))
    answered: list[tuple[Record, Answer | None]] | None = None
    notes: tuple[str, ...] = ()
    if held is None and len(records) < FEW:
        answered = cross_answers(base, plan, records, seed=seed, progress=progress)
        train = held = records
    else:
        train, held, notes = split_rows(records, held, task, plan.config.train_rows, seed=seed)
    expert = train_expert(base, plan, train, held, name=name, seed=seed, progress=progress)
    return NewExpert(expert, train, held, notes, answered)


def base_of(system: OpenSystem, task: Task) -> Base:
    """Return the base that a task's expert sits on, loaded where the system does not have it yet.

    Raises:
        ConfigError: there is no base of that name.
    """
    name = task.base or system.router_base
    if name in system.bases:
        return system.bases[name]
    first = system.bases[system.router_base]
    return Base.load(find_base(name), device=first.device, dtype=first.dtype)


def score_of(
    task: Task, answered: Sequence[tuple[Record, Answer | None]], *, seed: int
) -> tuple[float, tuple[float, float]]:
    """Return the headline metric of answers, and its 95 % interval.

    The interval is that of the bootstrap and, where the metric is a share, of Wilson (1927) as well: of a few rows that
    are all answered rightly the bootstrap alone would be sure.
    """
    metric = get_metric(task.metrics[0])
    statistics = row_statistics(
        task.metrics[0], task, [answer for _, answer in answered], [record for record, _ in answered]
    )
    value = float(metric.reduce(statistics.sum(axis=0)))
    low, high = bootstrap_ci(statistics, metric.reduce, seed=seed)
    if np.all((statistics >= 0) & (statistics <= 1)) and statistics.shape[1] == 2 and 0.0 <= value <= 1.0:
        wilson_low, wilson_high = _wilson(value, len(answered))
        low, high = min(low, wilson_low), max(high, wilson_high)
    return value, (low, high)


def _wilson(share: float, rows: int, z: float = 1.96) -> tuple[float, float]:
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return centre - half, centre + half


def _scored_rows(held: Sequence[Record], task: Task, *, seed: int) -> list[Record]:
    most = HELD_TEXTS if head_kind(task.head).is_generative else HELD_ROWS
    if len(held) <= most:
        return list(held)
    return draw(held, {"scored": most}, kind=head_kind(task.head), seed=seed, purpose="score")[0]["scored"]
