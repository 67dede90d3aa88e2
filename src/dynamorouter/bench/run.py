"""The comparison from settings to report: seeds, arms, studies, each step done once and resumable.

``OUT/seeds/SEED`` is an ordinary run (data, experts, router, system) for each seed; all seeds share the rows of the
first. ``OUT/rows.jsonl`` gets one row for each arm, task and seed, ``OUT/studies.jsonl`` one for each study.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynamorouter.bench.arms.base import Arm, build_arm, match_arms
from dynamorouter.bench.experiment import FLOAT, Experiment, check_one_base, fresh_base, primary_numbers
from dynamorouter.bench.results import ROWS, RowFile, example_path, row_digest, write_example_records
from dynamorouter.bench.studies import check_studies, study
from dynamorouter.config.schema import Config
from dynamorouter.data.prepare import load_prepared
from dynamorouter.errors import ConfigError, one_of
from dynamorouter.merging.truncate import Output
from dynamorouter.metrics.base import get_metric, score
from dynamorouter.runs import phases
from dynamorouter.runs.build import run_tasks
from dynamorouter.runs.run import NO_INFLUENCE, SEEDS, Run, open_run
from dynamorouter.system.system import EXPERTS, MANIFEST, System
from dynamorouter.tasks.task import Task
from dynamorouter.utils.environment import peak_memory_mb, versions
from dynamorouter.utils.files import sweep, writing_folder
from dynamorouter.utils.progress import shown_progress


def check(config: Config) -> None:
    """Look at the settings of a comparison before any work.

    Raises:
        ConfigError: they are wrong; the message names every mistake.
    """
    _, arm_mistakes = match_arms(config.bench.arms, list(config.task))
    _, diagram_mistakes = match_arms(config.bench.diagram, list(config.task))
    mistakes = [f"bench.arms: {mistake}" for mistake in arm_mistakes]
    mistakes += [f"bench.diagram: {mistake}" for mistake in diagram_mistakes]
    mistakes += [*_impossible(config), *check_saved_system(config)]
    mistakes += [*check_one_base(config), *check_studies(config), *_unusable_metrics(config)]
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def bench(config: Config, out: Path) -> list[dict[str, Any]]:
    """Do whatever of the comparison is not done yet, and return its rows.

    Raises:
        ConfigError: the settings are wrong; the message names every mistake.
    """
    check(config)
    names, _ = match_arms(config.bench.arms, list(config.task))
    file, digest = RowFile(out / ROWS), row_digest(config)
    for seed in range(config.seed, config.seed + config.bench.seeds):
        seed_config = config.model_copy(update={"seed": seed})
        folder = out / SEEDS / str(seed)
        _train(seed_config, folder, first=out / SEEDS / str(config.seed))
        missing = [name for name in names if not _done(file, name, seed_config, digest)]
        if missing:
            experiment = Experiment.open(seed_config, folder, load_prepared(folder / "data", list(config.task)))
            _same_experts(experiment, file, out)
            _arms(experiment, missing, file, out, config_hash=digest)
    first = out / SEEDS / str(config.seed)
    study(Experiment.open(config, first, load_prepared(first / "data", list(config.task))), out)
    return list(file)


def _impossible(config: Config) -> list[str]:
    """Return settings under which arms would fail after everything has been trained."""
    mistakes = []
    try:
        Output.parse(config.bench.output)
    except ConfigError as error:
        mistakes.append(f"bench.output: {error}")
    if config.experts.fusion:
        names = ", ".join(config.experts.fusion)
        mistakes.append(f"experts.fusion names {names}; fused experts cannot be merged: leave it out of a comparison")
    if config.joint.enabled:
        mistakes.append("joint.enabled is true, but a comparison has no joint phase; set joint.enabled=false")
    return mistakes


def _same_experts(experiment: Experiment, file: RowFile, out: Path) -> None:
    """Make sure that the rows of this seed were made of the same experts."""
    digests = experiment.digests()
    changed = [row["arm"] for row in file if row["seed"] == experiment.seed and row["experts"] != digests]
    if changed:
        raise ConfigError(
            f"the experts of seed {experiment.seed} are not those that {changed[0]!r} was made with: "
            f"{str(out / SEEDS / str(experiment.seed))!r} has changed since; begin a new comparison in another folder"
        )


def answer_metrics(task: Task) -> list[str]:
    """Return the metrics of a task that judge answers, and not the loss of a text."""
    return [name for name in task.metrics if not get_metric(name).reads_loss]


def _unusable_metrics(config: Config) -> list[str]:
    """Return which tasks have a primary metric that arms cannot be compared by."""
    mistakes = []
    for task in run_tasks(config):
        metric = get_metric(task.metrics[0])
        if metric.reads_loss or not metric.higher_is_better:
            mistakes.append(
                f"task.{task.name}.metrics: the primary metric is {task.metrics[0]!r}, but arms are compared by "
                "answers of which more is better; put another metric first"
            )
    return mistakes


def _train(config: Config, folder: Path, *, first: Path) -> None:
    """Train a seed's experts and router on the rows of the first seed, or take those of the saved system."""
    open_run(config, folder, resume=True, free=(*NO_INFLUENCE, "bench"))
    run = Run(config, folder)
    if folder != first and not run.is_done("prepare"):
        sweep(folder)
        shutil.copytree(first / "data", folder / "data", dirs_exist_ok=True)
        run.note("prepare", seconds=0.0, log=0)
    phases.prepare(config, folder)
    if config.bench.system is not None:
        install_saved_experts(config, run)
        return
    phases.fit_experts(config, folder)
    phases.fit_router(config, folder)


def _done(file: RowFile, name: str, config: Config, digest: str) -> bool:
    key = {"arm": name, "seed": config.seed, "config_hash": digest}
    return all(file.has(**key, task=task) for task in _answerable(name, config))


def _answerable(name: str, config: Config) -> list[str]:
    arm, tasks = build_arm(name), run_tasks(config)
    return [task.name for task in tasks if arm.applies(task)] if arm.suits(tasks) else []


def _arms(experiment: Experiment, names: Sequence[str], file: RowFile, out: Path, *, config_hash: str) -> None:
    """Fit each arm, and write a row for each task that has none yet."""
    shared: dict[str, Any] = {
        "config_hash": config_hash,
        "experts": experiment.digests(),
        "data_fingerprint": experiment.fingerprint(),
        "versions": versions(),
    }
    with shown_progress() as progress:
        progress.start(f"arms, seed {experiment.seed}", len(names), unit="arms")
        for name in names:
            arm = build_arm(name)
            start = time.perf_counter()
            arm.fit(experiment)
            fit = time.perf_counter() - start
            for task in experiment.tasks:
                key = {"arm": name, "task": task.name, "seed": experiment.seed, "config_hash": config_hash}
                if arm.applies(task) and not file.has(**key):
                    file.append({**_row(experiment, arm, name, task.name, out, fit=fit), **shared})
            progress.advance(note=name)


def _row(experiment: Experiment, arm: Arm, name: str, task_name: str, out: Path, *, fit: float) -> dict[str, Any]:
    """Let an arm answer one task; the items are written before the row is."""
    task = experiment.expert(task_name).task
    records = experiment.rows("test", task_name)
    start = time.perf_counter()
    arm.prepare(experiment, task_name)
    ready = time.perf_counter()
    answers = arm.answer(experiment, task_name)
    done = time.perf_counter()
    statistics = primary_numbers(task, answers, records)
    path = example_path(name, task_name, experiment.seed)
    write_example_records(out / path, records, answers, statistics)
    facts = arm.facts
    return {
        "arm": name,
        "task": task_name,
        "seed": experiment.seed,
        "told": arm.task_given,
        "metric": task.metrics[0],
        "n": len(records),
        **experiment.seen_notes(task_name),
        "value": float(get_metric(task.metrics[0]).reduce(statistics.sum(axis=0))),
        "metrics": score(task, answers, records, metrics=answer_metrics(task)),
        "parameters": facts.parameters,
        "bytes": facts.parameters * FLOAT,
        "work": round(facts.work, 4),
        "train_rows": facts.train_rows,
        "evaluations": facts.evaluations,
        "select": facts.select,
        "options": dict(facts.options),
        "notes": dict(facts.notes),
        "seconds": {
            "fit": round(fit, 3),  # once for all tasks
            "prepare": round(ready - start, 3),
            "answer": round(done - ready, 3),
        },
        "peak_memory_mb": peak_memory_mb(),
        "items": path,
    }


def check_saved_system(config: Config) -> list[str]:
    """Return why the named system's experts cannot be compared; nothing where experts are to be trained."""
    saved = config.bench.system
    if saved is None:
        return []
    folder = Path(saved)
    if not (folder / MANIFEST).is_file():
        return [f"bench.system: {saved!r} is no saved system; give a folder such as runs/quickstart/system"]
    mistakes = []
    missing = [name for name in config.task if not (folder / EXPERTS / name).is_dir()]
    if missing:
        mistakes.append(
            f"bench.system: {saved!r} has no expert {one_of(map(repr, missing))}; name tasks of its experts, task=[..]"
        )
    if config.bench.seeds != 1:
        mistakes.append(
            f"bench.seeds is {config.bench.seeds}, but the experts of bench.system are there once; set bench.seeds=1"
        )
    return mistakes


def install_saved_experts(config: Config, run: Run) -> None:
    """Put the named system's experts, in the order of the tasks, where a run keeps those that it has trained.

    Raises:
        ConfigError: an expert has another base model than the comparison.
    """
    folder = run.phase("router")
    if (folder / MANIFEST).is_file() or config.bench.system is None:
        return
    saved = System.load(config.bench.system, device=config.device, precision=config.precision)
    base = fresh_base(config)
    experts = [saved.experts[saved.index(name)] for name in config.task]
    foreign = [expert.name for expert in experts if saved.bases[expert.base].digest != base.digest]
    if foreign:
        raise ConfigError(
            f"the experts {one_of(foreign)} of {config.bench.system!r} are trained for another base model than "
            f"{config.base.name!r}; choose theirs with base=NAME, or leave these tasks out"
        )
    fused = [expert.name for expert in experts if expert.fusion is not None]
    if fused:
        raise ConfigError(f"the experts {one_of(fused)} of {config.bench.system!r} are fused, and cannot be merged")
    name = experts[0].base
    with writing_folder(folder) as temporary:
        System({name: saved.bases[name]}, experts, None, router_base=name, seen=saved.seen).save(temporary)
