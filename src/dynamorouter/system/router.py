"""Fitting the router of a system, and keeping what it read of each expert's rows for later.

Letters: N rows, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from dynamorouter.data.complexity.record import complexities
from dynamorouter.data.short import shortened
from dynamorouter.errors import RouterError
from dynamorouter.model.text.tokenize import TextPair
from dynamorouter.routing.base import Router, RouterInput
from dynamorouter.routing.options import router_options
from dynamorouter.routing.pooling import FeatureSample
from dynamorouter.routing.serialization import build
from dynamorouter.system.opened import OpenSystem
from dynamorouter.tasks.record import Record
from dynamorouter.training.router import (
    concat_pairs,
    fit_router,
    from_features,
    make_skill,
    pooled_by,
    read_rows,
)
from dynamorouter.utils.progress import SILENT, Progress

Labelled = tuple[list[RouterInput], list[int]]
"""Batches, and the expert of each of their rows."""


def check_router(settings: Mapping[str, Any]) -> None:
    """Build a router from its settings and throw it away, so that mistakes are found before any work.

    Raises:
        ConfigError: the kind or an option is unknown.
        RouterError: an option is out of range.
    """
    kind, layers = settings["kind"], settings["layers"]
    build(kind, router_options(kind, {**settings, "layers": (0,) if layers == "trunk" else layers}))


@dataclass(frozen=True, slots=True)
class RouterRows:
    """Rows by expert.

    Attributes:
        train: to fit on; an expert without rows is represented by its skill in the library.
        calibrate: held out, for the temperature; may be empty.
        features: of further rows, as a router reads them, to fit on as well.
    """

    train: Mapping[str, Sequence[Record]]
    calibrate: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    features: Mapping[str, FeatureSample] = field(default_factory=dict)


def fit_system_router(
    system: OpenSystem,
    settings: Mapping[str, Any],
    rows: RouterRows,
    *,
    seed: int,
    classes: Sequence[str] | None = None,
    balanced: bool = False,
    progress: Progress = SILENT,
) -> tuple[dict[str, FeatureSample], dict[str, Any]]:
    """Fit a router to a system's experts and put it into the system.

    Args:
        system: that routes by it from now on.
        settings: of the router: ``kind``, ``layers`` and whatever the kind understands.
        rows: what to fit on.
        seed: of initial weights and order.
        classes: names of the experts to choose among; ``None`` for all.
        balanced: let every expert count alike, however many rows it has.
        progress: told how far it is.

    Returns:
        What to keep of each expert's rows, and notes for the log.

    Raises:
        RouterError: an expert has neither rows nor a skill that this router can use.
    """
    names = list(system.names if classes is None else classes)
    options = reading_options(system, settings)
    reader = build(settings["kind"], options)
    share, short = (float(settings.get(name, 0.0)) for name in ("join_pairs", "short_rows"))
    pieces = partial(short_rows, system, share=short, seed=seed)
    progress.start("router", 2 * len(names), unit="parts")
    train, scores, skills = rows_to_fit_on(system, names, reader, rows, share=share, pieces=pieces, progress=progress)
    calibration: Labelled = ([], [])
    for index, name in enumerate(names):
        if rows.calibrate.get(name):
            records = [*rows.calibrate[name], *pieces(name, rows.calibrate[name])]
            _label(calibration, *read_records(system, reader, records), index)
        progress.advance()
    router = fit_router(
        settings["kind"],
        options,
        system.bases[system.router_base],
        [system.experts[system.names.index(name)] for name in names],
        train,
        calibration if calibration[0] else None,
        seed=seed,
        scores=scores,
        balanced=balanced,
    )
    system.use_router(router, names)
    notes: dict[str, Any] = {"kind": settings["kind"], "layers": list(router.layers)}
    if calibration[0]:
        notes["calibrate_accuracy"], notes["calibrate_nll"] = _judge(router, calibration)
    return skills, notes


def reading_options(system: OpenSystem, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a router by its settings, with the layers that ``trunk`` stands for in a system."""
    depth = min((e.lora.trunk_depth for e in system.experts if e.base == system.router_base), default=0)
    layers = settings["layers"]
    if layers == "trunk":
        layers = tuple(range((depth or system.bases[system.router_base].depth // 2) + 1))
    return router_options(settings["kind"], {**settings, "layers": layers})


def rows_to_fit_on(
    system: OpenSystem,
    names: Sequence[str],
    reader: Router,
    rows: RouterRows,
    *,
    share: float,
    pieces: Callable[[str, Sequence[Record]], Sequence[Record]] | None = None,
    progress: Progress,
) -> tuple[list[Labelled], list[float], dict[str, FeatureSample]]:
    """Read the rows of every expert, some in other forms as well, and what is remembered of experts without rows.

    Args:
        system: with the experts.
        names: of those to choose among.
        reader: the router, for what it reads.
        rows: by expert.
        share: of an expert's pairs that are also read as one run of text.
        pieces: makes further, shorter rows of an expert's.
        progress: told how far it is.

    Returns:
        Batches with their experts; a complexity for each of their rows, NaN where none is known; new skills.
    """
    train: list[Labelled] = []
    scores: list[float] = []
    skills: dict[str, FeatureSample] = {}
    for index, name in enumerate(names):
        records = rows.train.get(name)
        if records:
            batches, order = _read(system, reader, _pairs(records))
            train.append((batches, [index] * len(order)))
            row_scores = complexities(records)
            scores += [row_scores[row] for row in order]
            position_of = {row: position for position, row in enumerate(order)}
            skill = make_skill(reader, batches, [position_of[row] for row in range(len(order))])
            if skill is not None:
                skills[name] = skill
            runs = concat_pairs(_pairs(records))
            if runs and share:
                more, order = _read(system, reader, runs[: round(share * len(runs))])
                train.append((more, [index] * len(order)))
                paired = complexities([record for record in records if record.pair is not None])
                scores += [paired[row] for row in order]
            shorter = pieces(name, records) if pieces is not None else ()
            if shorter:
                more, order = read_records(system, reader, shorter)
                train.append((more, [index] * len(order)))
                scores += [math.nan] * len(order)
        if name in rows.features or not records:
            features = rows.features.get(name) or required_features(system, reader, name)
            batch = from_features(features, system.bases[system.router_base].device)
            train.append(([batch], [index] * len(batch)))
            scores += [math.nan] * len(batch)
        progress.advance()
    return train, scores, skills


def short_rows(system: OpenSystem, name: str, records: Sequence[Record], *, share: float, seed: int) -> list[Record]:
    """Return short pieces of a share of an expert's rows (see ``data.short``)."""
    task = system.experts[system.names.index(name)].task
    return list(shortened(task, records, share=share, seed=seed)) if share else []


def _label(labelled: Labelled, batches: Sequence[RouterInput], order: Sequence[int], expert: int) -> None:
    """Add batches whose rows are all of one expert."""
    labelled[0].extend(batches)
    labelled[1].extend([expert] * len(order))


def keep_better_router(system: OpenSystem, before: OpenSystem, rows: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """Calibrate a system's router, and put the one from before back where that routes held-out rows better."""
    assert system.router is not None and before.router is not None
    calibration: Labelled = ([], [])
    for index, name in enumerate(system.names):
        _label(calibration, *read_records(system, system.router, rows[name]), index)
    device = system.bases[system.router_base].device
    system.router.calibrate(calibration[0], torch.tensor(calibration[1], device=device))
    old, new = _judge(before.router, calibration), _judge(system.router, calibration)
    is_better = (new[0], -new[1]) >= (old[0], -old[1])
    if not is_better:
        system.use_router(before.router, system.classes)
    return {"accuracy_before": old[0], "accuracy": new[0], "nll_before": old[1], "nll": new[1], "kept": is_better}


def _pairs(records: Sequence[Record]) -> list[TextPair]:
    return [(record.text, record.pair) for record in records]


def read_records(system: OpenSystem, router: Router, records: Sequence[Record]) -> tuple[list[RouterInput], list[int]]:
    """Keep what a router reads of rows; also returns the position of each row of the batches among ``records``."""
    return _read(system, router, _pairs(records))


def _read(system: OpenSystem, router: Router, rows: Sequence[TextPair]) -> tuple[list[RouterInput], list[int]]:
    base, engine = system.bases[system.router_base], system.engine
    return read_rows(base, router, rows, max_tokens=engine.max_tokens, stride=engine.stride, budget=engine.budget)


def kept_features(system: OpenSystem, reader: Router, name: str) -> FeatureSample | None:
    """Return what was kept of an expert's rows, as far as a router reads it; ``None`` where it reads other things."""
    skill = system.skill(name)
    if skill is None or not reader.layers or skill.pooling != pooled_by(reader):
        return None
    if not set(reader.layers) <= set(skill.states):
        return None
    return FeatureSample({layer: skill.states[layer] for layer in reader.layers}, skill.pooling)


def required_features(system: OpenSystem, reader: Router, name: str) -> FeatureSample:
    """Return the same, where there is nothing else to fit on.

    Raises:
        RouterError: nothing was kept that the router reads.
    """
    features = kept_features(system, reader, name)
    if features is None:
        raise RouterError(
            f"expert {name!r} has no rows to fit the router on, and the library holds no features of it that a "
            f"{type(reader).__name__} router over layers {list(reader.layers)} reads; give rows of it with --data"
        )
    return features


def _judge(router: Router, labelled: Labelled) -> tuple[float, float]:
    """Return accuracy and mean negative log-likelihood on labelled batches."""
    labels = torch.split(torch.tensor(labelled[1]), [len(batch) for batch in labelled[0]])
    pairs = zip(labelled[0], labels, strict=True)
    chances = torch.cat([router.route_labelled(batch, experts).probabilities for batch, experts in pairs]).double()
    targets = torch.tensor(labelled[1], device=chances.device)
    picked = chances.gather(1, targets[:, None]).clamp_min(1e-12)
    return float((chances.argmax(dim=1) == targets).double().mean()), float(-picked.log().mean())
