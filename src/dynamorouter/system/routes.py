"""Routes of a system that experts join: the old ones are kept, as far as what was kept of their rows can tell.

A new expert is grown beside a router that stays as it is, where the router can do so (``routing.growth``); else the
router is fitted anew on the rows that are given and on the features that were kept of all others, each expert counting
alike. Before and after, the kept features of every old expert are routed: where one loses more than is allowed,
the old router is put back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from dynamorouter.data.rows import as_records
from dynamorouter.errors import RouterError
from dynamorouter.routing.base import Router, RouterData
from dynamorouter.routing.config import RouterConfig
from dynamorouter.routing.pooling import FeatureSample
from dynamorouter.routing.serialization import build, kind_of
from dynamorouter.system.opened import OpenSystem
from dynamorouter.system.router import (
    RouterRows,
    fit_system_router,
    kept_features,
    read_records,
    reading_options,
    rows_to_fit_on,
)
from dynamorouter.tasks.record import Record
from dynamorouter.training.router import SKILL_ROWS, from_features, make_skill
from dynamorouter.utils.progress import SILENT, Progress
from dynamorouter.utils.seeding import seeded

Way = Literal["grown", "fitted"]
MAX_LOSS = 0.02
"""Largest share of an old expert's kept rows that may lose their route, by default; one row always may."""
HELD_PART = 4
"""One in so many kept rows is left out of the fit, so that its route says something about rows to come, and"""
HELD_FROM = 64
"""so many there must be for that."""
LEAST_STEPS = 16
"""Steps per epoch that few rows are cut into."""


@dataclass(frozen=True, slots=True)
class RouterFit:
    """How the router of a system came out.

    Attributes:
        kind: of the router.
        way: ``grown`` where the old routes stayed as they were, else ``fitted`` anew.
        classes: the experts that it chooses among.
        accuracy: share of the kept rows of each expert that are routed to it.
        accuracy_before: the same of the router before, for the experts that it knew.
        left_out: experts that are not routed to, since nothing is known of their rows: merges beside their sources.
    """

    kind: str
    way: Way
    classes: tuple[str, ...]
    accuracy: Mapping[str, float]
    accuracy_before: Mapping[str, float]
    left_out: tuple[str, ...] = ()


def fit_router(
    system: OpenSystem,
    rows: Mapping[str, Iterable[Any]] | None = None,
    *,
    settings: RouterConfig | None = None,
    seed: int = 0,
    max_loss: float = MAX_LOSS,
    progress: Progress = SILENT,
) -> RouterFit:
    """Fit the router on rows, and on what is kept of experts that have none; or change nothing.

    Args:
        system: that routes by the new router from now on, and remembers what it read.
        rows: by expert or task, those of one a ``datasets.Dataset``, a data frame, mappings or records.
        settings: of a router to be fitted anew; by default experts join the one that is there, or, where there is none,
            one with default settings is fitted.
        seed: of initial weights and order.
        max_loss: largest share of an old expert's kept rows that may lose their route.
        progress: told how far it is.

    Raises:
        RouterError: an expert has neither rows nor kept features, or an old one would lose its routes.
        DataError: a row cannot be used.
        ConfigError: there is no expert of a name.
    """
    records = records_by_expert(system, rows or {})
    left_out = [e.name for e in system.experts if "merge" in e.card and not _is_known(system, e.name, records)]
    classes = [name for name in system.names if name not in left_out]
    if not classes:
        raise RouterError("the system has no expert to route to; add one first, with add_expert or 'expert train'")
    before = kept_accuracy(system)
    way, skills = _changed_router(system, classes, records, settings, max_loss, seed=seed, progress=progress)
    for name, expert_records in records.items():
        system.seen.add(name, expert_records)
    for name, skill in skills.items():
        system.skills[name] = joined(system.skill(name), skill)
    assert system.router is not None
    return RouterFit(
        kind_of(system.router),
        way,
        tuple(system.classes),
        _shares(kept_accuracy(system)),
        _shares(before),
        tuple(left_out),
    )


def _changed_router(
    system: OpenSystem,
    classes: Sequence[str],
    records: Mapping[str, Sequence[Record]],
    settings: RouterConfig | None,
    max_loss: float,
    *,
    seed: int,
    progress: Progress,
) -> tuple[Way, dict[str, FeatureSample]]:
    """Change the router in the first way that keeps the old routes; what is known of old experts orders the ways.

    Returns:
        The way, and what the router read of rows.

    Raises:
        RouterError: every way loses routes; the router is the old one.
    """
    old_router, old_classes, before = system.router, system.classes, kept_accuracy(system)
    joining = [name for name in classes if name not in old_classes]
    ways: tuple[Way, ...] = ("fitted",)
    if old_router is not None and settings is None and joining:
        staying = [name for name in old_classes if name in classes]
        classes = [*staying, *joining]
        ways = ("fitted", "grown") if all(name in records for name in staying) else ("grown", "fitted")
    lost: list[str] = []
    for way in ways:
        skills: dict[str, FeatureSample] | None = None
        if way == "fitted":
            skills = _fit_anew(system, classes, records, settings, seed=seed, progress=progress)
        elif old_router is not None:
            skills = _grow(system, old_router, classes, joining, records, seed=seed, progress=progress)
        if skills is None:  # a router of its kind cannot grow
            continue
        lost = _lost(before, kept_accuracy(system), max_loss)
        if not lost:
            return way, skills
        system.use_router(old_router, old_classes)
    raise RouterError(
        f"old experts would lose their routes, by the rows that are kept of them: {'; '.join(lost)}; max_loss "
        f"allows {max_loss:g}, so nothing was changed: give rows of these tasks too (--data DIR, rows=...), more "
        "rows of the new task, or allow more with --max-loss"
    )


def records_by_expert(system: OpenSystem, rows: Mapping[str, Iterable[Any]]) -> dict[str, list[Record]]:
    """Return rows as records, by the name of the expert.

    Raises:
        ConfigError: there is no expert of a name or task.
        DataError: a row cannot be used.
    """
    records = {}
    for name, task_rows in rows.items():
        expert = system.experts[system.engine.policy.index(name)]
        records[expert.name] = as_records(task_rows, expert.task, where=f"rows of {name!r}")
    return records


def keep_skill(system: OpenSystem, name: str, records: Sequence[Record]) -> None:
    """Keep what a router reads of an expert's rows: the system's router, or one of default settings."""
    reader = system.router or build("mlp", _default_reading(system))
    batches, order = read_records(system, reader, records)
    position_of = {row: position for position, row in enumerate(order)}
    skill = make_skill(reader, batches, [position_of[row] for row in range(len(order))])
    if skill is not None:
        system.skills[name] = skill


def kept_accuracy(system: OpenSystem) -> dict[str, tuple[int, int]]:
    """Return by expert how many of its kept rows the router sends to it, and how many there are."""
    router = system.router
    if router is None:
        return {}
    device = system.bases[system.router_base].device
    counts = {}
    for column, name in enumerate(system.classes):
        features = kept_features(system, router, name) if name in system.names else None
        if features is not None:
            batch = from_features(features, device)
            chosen = router.route_labelled(batch, torch.full((len(batch),), column)).probabilities.argmax(dim=1)
            counts[name] = int(chosen.eq(column).sum()), len(batch)
    return counts


def joined(old: FeatureSample | None, new: FeatureSample) -> FeatureSample:
    """Return what is kept of an expert's rows when more of them have been read: half of it at least the old ones."""
    if old is None or old.pooling != new.pooling or set(old.states) != set(new.states):
        return new
    old_rows, new_rows = (len(next(iter(sample.states.values()))) for sample in (old, new))
    kept = min(old_rows, max(SKILL_ROWS // 2, SKILL_ROWS - new_rows))
    states = {
        layer: torch.cat([state[_spread(old_rows, kept)], new.states[layer][_spread(new_rows, SKILL_ROWS - kept)]])
        for layer, state in old.states.items()
    }
    return FeatureSample(states, old.pooling)


def _spread(rows: int, count: int) -> list[int]:
    """Return the numbers of at most so many rows, at even distances."""
    count = min(rows, count)
    return [number * rows // count for number in range(count)]


def _is_known(system: OpenSystem, name: str, rows: Mapping[str, Sequence[Record]]) -> bool:
    return name in system.classes or name in rows or system.skill(name) is not None


def _lost(before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]], max_loss: float) -> list[str]:
    """Say which experts lost more routes than is allowed, by how many of their kept rows had and have theirs."""
    return [
        f"{name!r} {before[name][0] / count:.3f} -> {hits / count:.3f} of {count} rows"
        for name, (hits, count) in after.items()
        if name in before and before[name][0] - hits > (max(1.0, max_loss * count) if max_loss else 0.0)
    ]


def _fit_anew(
    system: OpenSystem,
    classes: Sequence[str],
    rows: Mapping[str, Sequence[Record]],
    settings: RouterConfig | None,
    *,
    seed: int,
    progress: Progress,
) -> dict[str, FeatureSample]:
    """Fit a router on rows and on what is kept of all experts, each of which counts alike."""
    values = _settings(system, classes, rows) if settings is None else settings.model_dump()
    reader = build(values["kind"], reading_options(system, values))
    fitted_on = RouterRows(rows, features=_features_to_fit_on(system, classes, reader))
    skills, _ = fit_system_router(
        system, values, fitted_on, seed=seed, classes=classes, balanced=True, progress=progress
    )
    return skills


def _grow(
    system: OpenSystem,
    router: Router,
    classes: Sequence[str],
    joining: Sequence[str],
    rows: Mapping[str, Sequence[Record]],
    *,
    seed: int,
    progress: Progress,
) -> dict[str, FeatureSample] | None:
    """Let experts join the router as it is; ``None`` where one of its kind cannot grow."""
    progress.start("router", len(classes), unit="parts")
    given = RouterRows(rows, features=_features_to_fit_on(system, classes, router))
    share = RouterConfig().join_pairs
    train, _, skills = rows_to_fit_on(system, classes, router, given, share=share, progress=progress)
    keep = [system.classes.index(name) for name in classes if name not in joining]
    data = RouterData(
        [batch for batches, _ in train for batch in batches],
        torch.tensor([target for _, targets in train for target in targets]),
        generator=seeded(seed, "router"),
        experts=len(classes),
    )
    grown = router.grown(data, keep=keep)
    if grown is None:
        return None
    system.use_router(grown, classes)
    return skills


def _settings(system: OpenSystem, classes: Sequence[str], rows: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """Return the settings of the router that is there, or default ones; few rows are cut into small batches."""
    defaults = RouterConfig().model_dump()
    settings = (
        defaults
        if system.router is None
        else {**defaults, **system.router.state()[0], "kind": kind_of(system.router), "options": {}}
    )
    count = sum(len(rows.get(name, ())) or SKILL_ROWS for name in classes)
    return {**settings, "batch_rows": max(4, min(settings["batch_rows"], count // LEAST_STEPS))}


def _features_to_fit_on(system: OpenSystem, classes: Sequence[str], reader: Router) -> dict[str, FeatureSample]:
    """Return the part of what is kept of experts' rows that a router is fitted on."""
    parts = {}
    for name in classes:
        features = kept_features(system, reader, name)
        if features is not None:
            count = len(next(iter(features.states.values())))
            rows = [row for row in range(count) if count < HELD_FROM or row % HELD_PART != HELD_PART - 1]
            states = {layer: state[rows] for layer, state in features.states.items()}
            parts[name] = FeatureSample(states, features.pooling)
    return parts


def _default_reading(system: OpenSystem) -> dict[str, Any]:
    """Return the options of a default router that reads as deep as one of any of the system's experts may."""
    base = system.bases[system.router_base]
    depth = max([base.depth // 2, *(e.lora.trunk_depth for e in system.experts if e.base == system.router_base)])
    return reading_options(system, {**RouterConfig().model_dump(), "layers": tuple(range(depth + 1))})


def _shares(counts: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    return {name: hits / count for name, (hits, count) in counts.items()}
