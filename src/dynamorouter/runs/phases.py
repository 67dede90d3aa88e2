"""The phases of a recipe, each resumable: prepare, experts, router, joint, score.

A phase writes a whole system to ``OUT/phases/PHASE`` or nothing; the last one is then copied to ``OUT/system``. A
phase that is there is not done again, and the experts' and the joint phase go on from their own checkpoints, so an
interrupted run ends with the same bits as one that was not.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from dynamorouter.config.schema import Config
from dynamorouter.data.complexity.prepare import MANIFEST, prepare_tiers
from dynamorouter.data.dedup import left_out_notes
from dynamorouter.data.lengths import truncation_report
from dynamorouter.data.prepare import PREPARED_SPLITS, PreparedData, load_prepared
from dynamorouter.data.prepare import prepare as prepare_data
from dynamorouter.errors import DataError, DynamoRouterError
from dynamorouter.evaluation.score import score_system
from dynamorouter.metrics.base import check_metrics
from dynamorouter.model.base.base import Base
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.text.examples import writing_report
from dynamorouter.routing.pooling import FeatureSample
from dynamorouter.runs.build import (
    cache_options,
    expert_plan,
    joint_plan,
    load_bases,
    loop_options,
    prepare_options,
    run_tasks,
    source_tasks,
    tier_options,
)
from dynamorouter.runs.complexity import complexity_report, joint_scores
from dynamorouter.runs.run import Run
from dynamorouter.system.router import RouterRows, fit_system_router, keep_better_router
from dynamorouter.system.system import System
from dynamorouter.tasks.record import Record
from dynamorouter.training.experts import fit_experts as train_experts
from dynamorouter.training.fusion import fit_fusions
from dynamorouter.training.joint import fit_joint as train_joint
from dynamorouter.training.joint import joint_router
from dynamorouter.utils.files import read_json, read_metadata, sweep, write_json, writing_folder
from dynamorouter.utils.progress import shown_progress
from dynamorouter.utils.tracking import Tracker

TIERS = "tiers"
"""Where in a run's folder the rows of tiers are."""


def run(config: Config, out: Path) -> Path:
    """Go through all phases of a recipe, from where they stand; returns the folder of the system."""
    prepare(config, out, reread=True)
    fit_experts(config, out)
    fit_router(config, out)
    if config.joint.enabled:
        fit_joint(config, out)
    report(config, out)
    return out / "system"


def prepare(config: Config, out: Path, *, reread: bool = False) -> PreparedData:
    """Read, filter, split and write the rows of all tasks to ``OUT/data``.

    Args:
        config: the settings.
        out: the run's folder.
        reread: prepare rows anew whose source has changed since, unless something is trained on them already.
    """
    run = Run(config, out)
    if run.is_done("prepare") and not (reread and not (out / "phases").exists()):
        return _prepared(run)
    before = time.perf_counter()
    manifest = _prepared(run).manifest if run.is_done("prepare") else None
    try:
        data = _prepare_tasks(config, out)
    except (DynamoRouterError, OSError):
        run.note_failed_prepare()
        raise
    for note in data.notes():
        print(note, file=sys.stderr)
    if data.manifest != manifest:
        with _tracker(run, 0) as tracker:
            for name, entry in data.manifest["tasks"].items():
                sizes = {split: part["rows"] for split, part in entry["splits"].items()}
                tracker.log(0, "prepare", task=name, rows=sizes, counts=entry["counts"], leaks=entry["leaks"]["found"])
            run.note("prepare", seconds=time.perf_counter() - before, log=tracker.offset())
    return data


def _prepare_tasks(config: Config, out: Path) -> PreparedData:
    tasks = run_tasks(config)
    check_metrics(tasks)
    shared = prepare_options(config)
    task_options = {name: replace(shared, train_rows=config.expert(name).rows_for(name)) for name in config.task}
    source, options = _source(config, out)
    with shown_progress() as progress:
        return prepare_data(
            tasks,
            out / "data",
            source=source,
            source_options=options,
            options=shared,
            task_options=task_options,
            progress=progress,
        )


def _source(config: Config, out: Path) -> tuple[str, dict[str, Any]]:
    """Return where rows are prepared from: the data itself, or the tiers that it is parted into first."""
    options = {"root": config.data.root} if config.data.source == "local" else {}
    if config.complexity is None:
        return config.data.source, options
    with shown_progress() as progress:
        tiers = prepare_tiers(
            source_tasks(config),
            out / TIERS,
            source=config.data.source,
            overrides=options,
            options=tier_options(config, config.complexity),
            progress=progress,
        )
    for note in left_out_notes("all tiers", tiers["read"]):
        print(note, file=sys.stderr)
    return "local", {"root": str(out / TIERS)}


def fit_experts(config: Config, out: Path) -> Path:
    """Train the experts on prepared rows."""
    return _phase(Run(config, out), "experts", "prepare", _experts)


def fit_router(config: Config, out: Path) -> Path:
    """Fit the router on prepared rows."""
    return _phase(Run(config, out), "router", "experts", _router)


def fit_joint(config: Config, out: Path) -> Path:
    """Train router and experts together."""
    return _phase(Run(config, out), "joint", "router", _joint)


def report(config: Config, out: Path) -> Path:
    """Score the system on the test rows and write ``OUT/report.json``, unless it is there."""
    run, path = Run(config, out), out / "report.json"
    if path.is_file():
        return path
    system = System.load(out / "system", device=config.device, precision=config.precision)
    data = _prepared(run)
    records = {name: data.split("test", name) for name in config.task}
    with shown_progress() as progress:
        scores = score_system(
            system,
            records,
            seed=config.seed,
            resamples=config.evaluation.bootstrap,
            config_hash=config.digest(),
            progress=progress,
        )
        if config.complexity is not None:
            scores["complexity"] = complexity_report(config, out, system, data, progress=progress)
            scores["rows_before_tiers"] = read_json(out / TIERS / MANIFEST)["read"]
    scores["cost"]["seconds"] = run.state()["seconds"]
    scores["recipe"] = config.recipe
    scores["rows"] = {name: data.manifest["tasks"][name]["counts"] for name in config.task}
    scores["truncation"] = {
        expert.name: _truncation(data.split("train", expert.task.name), system.bases[expert.base], expert)
        for expert in system.experts
    }
    write_json(path, scores)
    return path


def _truncation(records: Sequence[Record], base: Base, expert: Expert) -> dict[str, Any]:
    """Return how long an expert's rows are in tokens, and how many are cut."""
    if expert.is_generative:
        return writing_report(base, expert.head, expert.task, records)
    tokenizer = partial(base.tokenizer, verbose=False)  # rows that are too long are what is counted, and no mishap
    return truncation_report(records, tokenizer, expert.task).to_json()


@dataclass(frozen=True, slots=True)
class PhaseLog:
    """One sitting at a phase: its log, and the seconds that it and earlier ones took (see ``TrainingLog``).

    Attributes:
        run: the run.
        phase: the phase.
        tracker: the log.
        began: when it would have begun in one sitting, by ``time.perf_counter``.
        name: of the part of the phase that is noted.
    """

    run: Run
    phase: str
    tracker: Tracker
    began: float
    name: str = ""

    @staticmethod
    def of(run: Run, phase: str, tracker: Tracker) -> PhaseLog:
        """Begin a sitting, or go on from the one before."""
        return PhaseLog(run, phase, tracker, time.perf_counter() - float(run.state()["seconds"].get(phase, 0.0)))

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self.began

    def part(self, name: str) -> PhaseLog:
        """Return where a part of the phase is noted."""
        return replace(self, name=name)

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line of the log."""
        self.tracker.log(step, self.phase, part=self.name, **values)

    def saved(self) -> None:
        """Take note of a checkpoint."""
        self.run.note(self.phase, seconds=self.seconds)


Work = Callable[[Run, PreparedData, PhaseLog], tuple[System, dict[str, FeatureSample]]]


def _phase(run: Run, name: str, after: str, work: Work) -> Path:
    """Do a phase unless its result is there, and make that the run's system."""
    folder = run.phase(name)
    if not run.is_done(name):
        if not run.is_done(after):
            raise DataError(
                f"{run.out} has no finished {after!r} phase, which {name!r} builds on; "
                f"do it first, with 'dynamorouter {'prepare' if after == 'prepare' else f'fit {after}'}'"
            )
        sweep(folder.parent)
        rounds = {part: _last_round(file) for part, file in _checkpoints(run, name).items() if file.is_file()}
        with _tracker(run, run.log_length(name, after, rounds)) as tracker:
            phase_log = PhaseLog.of(run, name, tracker)
            data = _prepared(run)
            system, skills = work(run, data, phase_log)
            for task in run.config.task:
                rows = (data.split(split, task) for split in PREPARED_SPLITS if split != "test")
                system.seen.add(task, chain.from_iterable(rows))
            with writing_folder(folder) as temporary:
                system.save(temporary, skills=skills)
                run.note(name, seconds=phase_log.seconds, log=tracker.offset())
        (run.out / "report.json").unlink(missing_ok=True)
    for stale in _checkpoints(run, name).values():
        stale.unlink(missing_ok=True)
    if not run.is_published(name):
        sweep(run.out)
        with writing_folder(run.out / "system") as temporary:
            shutil.copytree(folder, temporary, dirs_exist_ok=True)
        run.publish(name)
    return folder


def _tracker(run: Run, length: int) -> Tracker:
    return Tracker(run.out, run.config.tracking, resume_at=length, config=run.config.to_json())


def _prepared(run: Run) -> PreparedData:
    return load_prepared(run.out / "data", list(run.config.task))


def _checkpoints(run: Run, name: str) -> dict[str, Path]:
    """Where the parts of a phase keep their checkpoints, by the name of the base that they train on."""
    bases = [base.name for base in run.config.bases_in_use()] if name == "experts" else [run.config.base.name]
    return {base: run.out / "phases" / f"{name}.{index}.checkpoint" for index, base in enumerate(bases)}


def _last_round(checkpoint: Path) -> int:
    return int(json.loads(read_metadata(checkpoint)["state"])["round"])


def _experts(run: Run, data: PreparedData, phase_log: PhaseLog) -> tuple[System, dict[str, FeatureSample]]:
    config, tasks = run.config, run_tasks(run.config)
    bases = load_bases(config)
    train = {task.name: data.split("train", task.name) for task in tasks}
    select = {task.name: data.split("validation", task.name) for task in tasks}
    experts: dict[str, Expert] = {}
    for base_name, checkpoint in _checkpoints(run, "experts").items():
        plans = [expert_plan(config, task) for task in tasks if config.base_of(task).name == base_name]
        if not plans:
            continue
        with shown_progress() as progress:
            trained = train_experts(
                bases[base_name],
                plans,
                train,
                select,
                options=loop_options(config),
                log=phase_log.part(base_name),
                cache=cache_options(config, run.out / "phases" / "trunk"),
                checkpoint=checkpoint,
                progress=progress,
            )
        experts.update({expert.name: expert for expert in trained})
    fused = _fused(run, data, phase_log, bases, [experts[task.name] for task in tasks])
    info = {"recipe": config.recipe, "seed": config.seed, "config_hash": config.digest()}
    return System(bases, fused, None, router_base=config.base.name, info=info), {}


def _router(run: Run, data: PreparedData, phase_log: PhaseLog) -> tuple[System, dict[str, FeatureSample]]:
    config = run.config
    system = System.load(
        run.phase("experts"),
        device=config.device,
        precision=config.precision,
        tokens_per_batch=config.experts.tokens_per_batch,
    )
    more = config.router.expert_rows
    rows = RouterRows(
        train={name: data.split("router", name) + data.split("train", name)[:more] for name in config.task},
        calibrate={name: data.split("calibration", name) for name in config.task},
    )
    with shown_progress() as progress:
        settings = config.router.model_dump()
        skills, notes = fit_system_router(system, settings, rows, seed=config.seed, progress=progress)
    phase_log.tracker.log(0, "router", **notes)
    return system, skills


def _joint(run: Run, data: PreparedData, phase_log: PhaseLog) -> tuple[System, dict[str, FeatureSample]]:
    config = run.config
    before = System.load(run.phase("router"), device=config.device, precision=config.precision)
    system = System.load(run.phase("router"), device=config.device, precision=config.precision)
    base = system.bases[system.router_base]
    ((part, checkpoint),) = _checkpoints(run, "joint").items()
    with shown_progress() as progress:
        experts = train_joint(
            base,
            system.experts,
            joint_router(system.router),
            [joint_plan(config, expert.task) for expert in system.experts],
            {name: data.split("joint", name) for name in config.task},
            {name: data.split("validation", name) for name in config.task},
            joint=config.joint,
            options=loop_options(config),
            log=phase_log.part(part),
            scores=joint_scores(data, system.names),
            cache=cache_options(config, run.out / "phases" / "trunk"),
            checkpoint=checkpoint,
            progress=progress,
        )
    system = System(
        system.bases,
        _fused(run, data, phase_log, system.bases, experts),
        system.router,
        router_base=system.router_base,
        classes=system.classes,
        info=system.info,
        seen=system.seen,
    )
    calibrate = {name: data.split("calibration", name) for name in config.task}
    phase_log.tracker.log(0, "joint", **keep_better_router(system, before, calibrate))
    library = before.library
    skills = {name: skill for name in system.names if library and (skill := library.skill(name)) is not None}
    return system, skills


def _fused(
    run: Run, data: PreparedData, phase_log: PhaseLog, bases: Mapping[str, Base], experts: Sequence[Expert]
) -> list[Expert]:
    """Train the fusions that the settings name over experts that will not change any more in this phase."""
    config = run.config
    fusions = {task: config.experts.fusion[task] for task in config.task if task in config.experts.fusion}
    if not fusions:
        return list(experts)
    with shown_progress() as progress:
        return fit_fusions(
            bases,
            experts,
            fusions,
            {task: data.split("train", task) for task in fusions},
            {task: data.split("validation", task) for task in fusions},
            options=loop_options(config),
            log=phase_log,
            cache=cache_options(config, run.out / "phases" / "trunk"),
            progress=progress,
        )
