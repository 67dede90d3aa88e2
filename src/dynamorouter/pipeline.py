"""The phases of a recipe, each resumable: prepare, experts, router, joint, score.

A phase writes a whole system to ``OUT/phases/PHASE`` or nothing; the last one is then copied to ``OUT/system``. A
phase that is there is not done again, and the experts' and the joint phase go on from their own checkpoints, so an
interrupted run ends with the same bits as one that was not.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dynamorouter.data.prepare import AugmentOptions, PreparedData, PrepareOptions, load_prepared
from dynamorouter.data.prepare import prepare as prepare_data
from dynamorouter.data.records import Record
from dynamorouter.devices import pick_device, pick_dtype
from dynamorouter.errors import ConfigError, DataError
from dynamorouter.evaluate import score_system
from dynamorouter.files import read_json, write_json, writing_folder
from dynamorouter.learn.experts import CacheOptions, fit_experts as train_experts
from dynamorouter.learn.joint import fit_joint as train_joint
from dynamorouter.learn.joint import joint_router
from dynamorouter.learn.loop import Log, LoopOptions
from dynamorouter.learn.trainee import ExpertPlan
from dynamorouter.library import Skill
from dynamorouter.model.base import Base, BaseSpec
from dynamorouter.model.expert import Expert, LoraSettings
from dynamorouter.routing_phase import RouterRows, fit_system_router, keep_better_router
from dynamorouter.settings import BaseSettings, Config
from dynamorouter.system import System
from dynamorouter.tasks.load import task_from_config
from dynamorouter.tasks.task import Task
from dynamorouter.tracking import Progress, Tracker

STATE = "state.json"


@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder and settings.

    Attributes:
        config: the settings.
        out: the folder.
    """

    config: Config
    out: Path

    @property
    def tasks(self) -> list[Task]:
        """The tasks, in the order of their experts."""
        names = self.config.task.items()
        return [task_from_config({**settings.model_dump(mode="json"), "name": name}) for name, settings in names]

    def phase(self, name: str) -> Path:
        """Where a phase's system is."""
        return self.out / "phases" / name

    def state(self) -> dict[str, Any]:
        """What was done so far: the log's length and the seconds that each phase took."""
        path = self.out / STATE
        return dict(read_json(path)) if path.is_file() else {"log": {}, "seconds": {}}

    def partial(self, name: str, tracker: Tracker) -> None:
        """Note how long the log is at a phase's checkpoint."""
        state = self.state()
        state["log"][f"{name}.partial"] = tracker.offset()
        write_json(self.out / STATE, state)

    def finish(self, name: str, tracker: Tracker, seconds: float) -> None:
        """Note that a phase is done."""
        state = self.state()
        state["log"][name] = tracker.offset()
        state["log"].pop(f"{name}.partial", None)
        state["seconds"][name] = round(seconds, 3)
        write_json(self.out / STATE, state)


def run(config: Config, out: Path, *, resume: bool) -> Path:
    """Go through all phases of a recipe; returns the folder of the system."""
    prepare(config, out, resume=resume)
    fit_experts(config, out, resume=resume)
    fit_router(config, out, resume=resume)
    if config.joint.enabled:
        fit_joint(config, out, resume=resume)
    report(config, out, resume=resume)
    return out / "system"


def prepare(config: Config, out: Path, *, resume: bool = True) -> PreparedData:
    """Read, filter, split and write the rows of all tasks to ``OUT/data``."""
    run = Run(config, out)
    filters, augment = config.data.filters, config.data.augment
    shared = PrepareOptions(
        seed=config.seed,
        router_rows=config.router.train_rows or 10**9,
        joint_rows=(config.joint.train_rows or 10**9) if config.joint.enabled else 0,
        select_rows=config.evaluation.select_rows,
        calibrate_rows=config.evaluation.calibrate_rows,
        report_rows=config.evaluation.report_rows or 10**9,
        leaks=config.data.leaks,
        when_short=config.data.when_short,
        max_chars=filters.max_chars,
        max_words=filters.max_words,
        skip_bad=filters.skip_bad,
        augment=AugmentOptions(**augment.model_dump()),
    )
    own = {name: replace(shared, train_rows=config.expert(name).train_rows) for name in config.task}
    options = {"root": config.data.root} if config.data.source == "local" else {}
    tracker = Tracker(out, config.tracking, resume_at=0 if not resume else run.state()["log"].get("prepare", 0))
    with tracker, Progress("prepare", len(own), unit="tasks") as progress:
        before = time.perf_counter()
        data = prepare_data(
            run.tasks, out / "data", source=config.data.source, source_options=options, options=shared,
            task_options=own, advance=progress.advance,
        )
        if "prepare" not in run.state()["log"]:
            for name, entry in data.manifest["tasks"].items():
                sizes = {split: part["rows"] for split, part in entry["splits"].items()}
                tracker.log(0, "prepare", task=name, rows=sizes, counts=entry["counts"], leaks=entry["leaks"]["found"])
            run.finish("prepare", tracker, time.perf_counter() - before)
    return data


def fit_experts(config: Config, out: Path, *, resume: bool = True) -> Path:
    """Train the experts on prepared rows."""
    return _phase(Run(config, out), "experts", "prepare", resume, _experts)


def fit_router(config: Config, out: Path, *, resume: bool = True) -> Path:
    """Fit the router on prepared rows."""
    return _phase(Run(config, out), "router", "experts", resume, _router)


def fit_joint(config: Config, out: Path, *, resume: bool = True) -> Path:
    """Train router and experts together."""
    return _phase(Run(config, out), "joint", "router", resume, _joint)


def report(config: Config, out: Path, *, resume: bool = True) -> Path:
    """Score the system on the report rows and write ``OUT/report.json``."""
    run, path = Run(config, out), out / "report.json"
    if path.is_file() and resume:
        return path
    system = System.load(out / "system", device=config.device, precision=config.precision)
    data = _prepared(run)
    records = {task.name: data.split("report", task.name) for task in run.tasks}
    with Progress("score", sum(map(len, records.values()))) as progress:
        scores = score_system(
            system,
            records,
            seed=config.seed,
            resamples=config.evaluation.bootstrap,
            config_hash=config.digest(),
            advance=progress.advance,
        )
    scores["cost"]["seconds"] = run.state()["seconds"]
    scores["recipe"] = config.recipe
    write_json(path, scores)
    return path


Work = Callable[[Run, PreparedData, Tracker], tuple[System, dict[str, Skill]]]


def _phase(run: Run, name: str, after: str, resume: bool, work: Work) -> Path:
    """Do a phase unless its result is there, and make that the run's system."""
    folder = run.phase(name)
    if not (folder / "system.json").is_file():
        state = run.state()
        if after not in state["log"]:
            raise DataError(
                f"{run.out} has no finished {after!r} phase, which {name!r} builds on; "
                f"do it first, with 'dynamorouter {'prepare' if after == 'prepare' else f'fit {after}'}'"
            )
        with Tracker(run.out, run.config.tracking, resume_at=state["log"].get(f"{name}.partial", state["log"][after])) as tracker:
            before = time.perf_counter()
            system, skills = work(run, _prepared(run), tracker)
            with writing_folder(folder) as temporary:
                system.save(temporary, skills=skills)
            run.finish(name, tracker, time.perf_counter() - before)
        for stale in (run.out / "phases").glob(f"{name}*.checkpoint"):
            stale.unlink()
        (run.out / "report.json").unlink(missing_ok=True)
    with writing_folder(run.out / "system") as temporary:
        shutil.copytree(folder, temporary, dirs_exist_ok=True)
    return folder


def _prepared(run: Run) -> PreparedData:
    return load_prepared(run.out / "data", [task.name for task in run.tasks])


def _experts(run: Run, data: PreparedData, tracker: Tracker) -> tuple[System, dict[str, Skill]]:
    config = run.config
    bases = load_bases(config)
    train = {task.name: data.split("train", task.name) for task in run.tasks}
    select = {task.name: data.split("select", task.name) for task in run.tasks}
    done: dict[str, Expert] = {}
    for name, base in bases.items():
        plans = [expert_plan(config, task) for task in run.tasks if (task.base or config.base.name) == name]
        if not plans:
            continue
        with _training(run, f"experts.{name}", tracker, "experts") as (log, begin):
            found = train_experts(
                base,
                plans,
                train,
                select,
                options=loop_options(config),
                log=log,
                cache=cache_options(run),
                checkpoint=run.out / "phases" / f"experts.{name}.checkpoint",
                saved=lambda: run.partial("experts", tracker),
                begin=begin,
            )
        done.update({expert.name: expert for expert in found})
    experts = [done[task.name] for task in run.tasks]
    info = {"recipe": config.recipe, "seed": config.seed, "config_hash": config.digest()}
    return System(bases, experts, None, router_base=config.base.name, info=info), {}


def _router(run: Run, data: PreparedData, tracker: Tracker) -> tuple[System, dict[str, Skill]]:
    config = run.config
    system = System.load(run.phase("experts"), device=config.device, precision=config.precision)
    rows = RouterRows(
        train={task.name: data.split("router", task.name) for task in run.tasks},
        calibrate={task.name: data.split("calibrate", task.name) for task in run.tasks},
    )
    system.tokens_per_batch = config.experts.tokens_per_batch
    with Progress("router", 2 * len(run.tasks), unit="parts") as progress:
        settings = config.router.model_dump()
        skills, notes = fit_system_router(system, settings, rows, seed=config.seed, advance=progress.advance)
    tracker.log(0, "router", **notes)
    return system, skills


def _joint(run: Run, data: PreparedData, tracker: Tracker) -> tuple[System, dict[str, Skill]]:
    config, joint = run.config, run.config.joint
    system = System.load(run.phase("router"), device=config.device, precision=config.precision)
    router = joint_router(system.router)
    if len(system.bases) > 1:
        raise ConfigError("the joint phase trains experts of one base; set joint.enabled=false with several bases")
    base = system.bases[system.router_base]
    changes = {
        "epochs": joint.epochs,
        "learning_rate": joint.learning_rate,
        "head_learning_rate": joint.learning_rate,
        "weight_decay": joint.weight_decay,
        "warmup": joint.warmup,
        "batch_rows": max(1, joint.batch_rows // len(run.tasks)),
    }
    plans = [replace(expert_plan(config, expert.task), **changes) for expert in system.experts]
    with _training(run, "joint", tracker, "joint") as (log, begin):
        experts = train_joint(
            base,
            system.experts,
            router,
            plans,
            {task.name: data.split("joint", task.name) for task in run.tasks},
            {task.name: data.split("select", task.name) for task in run.tasks},
            gates=joint.gates,
            router_learning_rate=joint.router_learning_rate or joint.learning_rate,
            router_weight=joint.router_loss_weight,
            options=loop_options(config),
            log=log,
            cache=cache_options(run),
            checkpoint=run.out / "phases" / "joint.checkpoint",
            saved=lambda: run.partial("joint", tracker),
            begin=begin,
        )
    calibrate = {task.name: data.split("calibrate", task.name) for task in run.tasks}
    system = System({base.spec.name: base}, experts, router, router_base=base.spec.name, classes=system.classes,
                    info=system.info)
    before = System.load(run.phase("router"), device=config.device, precision=config.precision)
    notes = keep_better_router(system, before, calibrate)
    tracker.log(0, "joint", **notes)
    library = before.library
    skills = {name: skill for name in system.names if library and (skill := library.skill(name)) is not None}
    return system, skills


def expert_plan(config: Config, task: Task) -> ExpertPlan:
    """Return how a task's expert is trained, its own ``hyper`` applied."""
    own = config.expert(task.name)
    base = config.bases.get(task.base, config.base) if task.base else config.base
    lora = LoraSettings(
        rank=own.rank,
        alpha=own.alpha,
        rslora=own.rslora,
        dropout=own.dropout,
        targets=own.targets,
        trunk_depth=own.trunk_depth,
    )
    return ExpertPlan(
        task=task,
        lora=lora,
        head_options={"pooling": base.pooling} if task.head == "classification" else {},
        epochs=own.epochs,
        batch_rows=own.batch_rows * own.accumulation,
        learning_rate=own.learning_rate,
        head_learning_rate=own.head_learning_rate or own.learning_rate,
        weight_decay=own.weight_decay,
        warmup=own.warmup,
        clip=own.clip,
        patience=own.patience,
        min_delta=own.min_delta,
        weight=own.fixed_weights.get(task.name, 1.0),
        uncertainty=own.loss_weights == "uncertainty",
    )


def base_spec(settings: BaseSettings) -> BaseSpec:
    """Return where a base is found."""
    return BaseSpec(settings.name, settings.path, settings.fallback, settings.revision)


def load_bases(config: Config) -> dict[str, Base]:
    """Load the default base, and those that tasks name."""
    device = pick_device(config.device)
    dtype = pick_dtype(config.precision, device)
    named = {task.base for task in config.task.values() if task.base}
    wanted = [config.base, *(b for key, b in config.bases.items() if {key, b.name} & named and b.name != config.base.name)]
    return {settings.name: Base.load(base_spec(settings), device=device, dtype=dtype) for settings in wanted}


def loop_options(config: Config) -> LoopOptions:
    """Return what all experts of the run share."""
    return LoopOptions(
        tokens_per_batch=config.experts.tokens_per_batch,
        checkpoint_every=config.experts.checkpoint_every,
        seed=config.seed,
    )


def cache_options(run: Run) -> CacheOptions:
    """Return where the trunk's outputs are kept."""
    settings = run.config.experts.trunk_cache
    limit = 0 if settings.where == "off" else settings.limit_mb << 20
    return CacheOptions(limit=limit, folder=run.out / "phases" / "trunk" if settings.where == "disk" else None)


@contextmanager
def _training(
    run: Run, label: str, tracker: Tracker, phase: str
) -> Iterator[tuple[Log, Callable[[int], Callable[[int], None]]]]:
    """Give a training loop its log and its progress bar."""
    bars: list[Progress] = []

    def begin(total: int) -> Callable[[int], None]:
        bars.append(Progress(label, total, unit="rows"))
        return bars[-1].advance

    def log(step: int, values: Mapping[str, float]) -> None:
        tracker.log(step, phase, **values)

    try:
        yield log, begin
    finally:
        for bar in bars:
            bar.close()
