"""From a source to the splits that the phases read: filtered, stratified, disjoint, leak-free and reproducible.

``DIR/<task>/<split>.jsonl`` holds unified records, ``DIR/<task>/manifest.json`` what was done to them, and
``DIR/manifest.json`` all of it together. The splits:

- ``train`` (experts), ``router``, ``joint``: from the source's train split, disjoint where the rows suffice;
- ``validation`` (early stopping and choices), ``calibration`` (temperature), ``test`` (scores): from the source's test
  and validation, else carved from train, and never in common with any row above.

A task's splits depend on the seed, the task and its own data alone, not on the other tasks.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import combinations
from pathlib import Path
from typing import Any

from dynamorouter.data.augment import augmented
from dynamorouter.data.config import RowsConfig
from dynamorouter.data.dedup import SplitRows, key_of, left_out_notes, read_split_rows, remove_leaks
from dynamorouter.data.sources import source_options as merged_options
from dynamorouter.data.sources import sources
from dynamorouter.data.split import draw, shrink
from dynamorouter.errors import ConfigError, DataError, one_of, suggest
from dynamorouter.tasks.kinds import head_kind
from dynamorouter.tasks.record import Record, read_records, write_records
from dynamorouter.tasks.task import Task
from dynamorouter.utils.files import file_sha256, read_finished, read_form
from dynamorouter.utils.jsonl import write_atomic
from dynamorouter.utils.options import FOR_DIGEST
from dynamorouter.utils.progress import SILENT, Progress

FORMAT = 1
TRAIN_SPLITS = ("train", "router", "joint")
HELD_OUT_SPLITS = ("validation", "calibration", "test")
PREPARED_SPLITS = (*TRAIN_SPLITS, *HELD_OUT_SPLITS)
MANIFEST = "manifest.json"
NAMES_BEFORE = {"validation": "select", "calibration": "calibrate", "test": "report"}
"""What the held-out splits were called in folders that were prepared before version 0.1."""


@dataclass(frozen=True, slots=True)
class PrepareOptions:
    """How much of what.

    Attributes:
        seed: of every draw.
        train_rows: rows per task for the experts; ``None`` for all that router and joint leave (at least half).
        router_rows: rows per task for the router.
        joint_rows: rows per task for the joint phase.
        select_rows: rows per task for early stopping.
        calibrate_rows: rows per task for the temperature.
        report_rows: rows per task for the scores.
        carve: largest share of train that held-out splits are carved from where the source has none, 0 to 1.
        rows: which are kept, and what they are made into; held-out splits shrink where there are too few.
    """

    seed: int = 0
    train_rows: int | None = None
    router_rows: int = 1000
    joint_rows: int = 500
    select_rows: int = 500
    calibrate_rows: int = 500
    report_rows: int = 1000
    carve: float = 0.2
    rows: RowsConfig = field(default_factory=RowsConfig)

    def __post_init__(self) -> None:
        """Check all settings at once.

        Raises:
            ConfigError: settings are out of range; the message lists all of them.
        """
        least = {"train_rows": 1, "router_rows": 0, "joint_rows": 0}
        least |= dict.fromkeys(("select_rows", "calibrate_rows", "report_rows"), 1)
        mistakes = [
            f"{name} is {value}; at least {low} is allowed"
            for name, low in least.items()
            if (value := getattr(self, name)) is not None and value < low
        ]
        if not 0.0 < self.carve < 1.0:
            mistakes.append(f"carve is {self.carve}; more than 0 and less than 1 is allowed")
        if mistakes:
            raise ConfigError("prepare: " + "; ".join(mistakes))

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values, under the names that digests are made of."""
        rows = self.rows.model_dump(context=FOR_DIGEST, include=set(RowsConfig.model_fields))
        sizes = {option.name: getattr(self, option.name) for option in fields(self) if option.name != "rows"}
        return {**sizes, **rows.pop("filters"), **rows}


@dataclass(frozen=True, slots=True)
class PreparedData:
    """What ``prepare`` wrote.

    Attributes:
        root: the folder.
        tasks: names of the tasks asked for, in order.
        manifest: per task what was done: counts, filters, leaks, sizes and hashes of the files.
    """

    root: Path
    tasks: tuple[str, ...]
    manifest: Mapping[str, Any]

    def notes(self) -> list[str]:
        """Return a sentence for each split of the source of which rows were left out or repaired."""
        return [note for name in self.tasks for note in left_out_notes(name, self.manifest["tasks"][name]["counts"])]

    def split(self, name: str, task: str) -> list[Record]:
        """Return the rows of one split of one task.

        Raises:
            DataError: there is no such task or split, or the file is not what was written.
        """
        if task not in self.tasks:
            raise DataError(f"{self.root} has no task {task!r}{suggest(task, self.tasks)}, only {one_of(self.tasks)}")
        if name not in PREPARED_SPLITS:
            raise DataError(
                f"unknown split {name!r}{suggest(name, PREPARED_SPLITS)}; allowed: {one_of(PREPARED_SPLITS)}"
            )
        splits = self.manifest["tasks"][task]["splits"]
        stored = _stored_name(splits, name)
        path = self.root / task / f"{stored}.jsonl"
        if file_sha256(path) != splits[stored]["sha256"]:
            raise DataError(f"{path} was changed after it was prepared; delete {self.root} and prepare again")
        return list(read_records(path))


def prepare(
    tasks: Sequence[Task],
    out: str | Path,
    *,
    source: str,
    source_options: Mapping[str, Any] | None = None,
    options: PrepareOptions | None = None,
    task_options: Mapping[str, PrepareOptions] | None = None,
    progress: Progress = SILENT,
) -> PreparedData:
    """Write all splits of all tasks, or reuse those that were completely written with the same settings and data.

    Args:
        tasks: in the system's order, which gives the records' ``task_id``.
        out: the folder; made where it is missing.
        source: name of the source for all tasks.
        source_options: options for all tasks, over those that each task has for the source, such as ``root``.
        options: how much of what.
        task_options: the same for single tasks, instead of ``options``.
        progress: told how far it is.

    Raises:
        ConfigError: a source or an option is wrong.
        DataError: data is missing or broken, leaks with ``leaks=fail``, or the folder cannot be written to.
    """
    root, options = Path(out), options or PrepareOptions()
    _check_names(tasks)
    done = {}
    progress.start("prepare", len(tasks), unit="tasks")
    for task_id, task in enumerate(tasks):
        merged = merged_options(task, source, source_options)
        task_settings = (task_options or {}).get(task.name, options)
        digest = _digest(task, task_id, source, merged, task_settings)
        entry = read_finished(root / task.name / MANIFEST, digest=digest, hashes=_split_hashes)
        done[task.name] = entry or _prepare_task(task, task_id, root / task.name, source, merged, task_settings, digest)
        progress.advance()
    manifest = {"format": FORMAT, "source": source, "options": options.to_json(), "tasks": done}
    _write_json(root / MANIFEST, manifest)
    return PreparedData(root, tuple(task.name for task in tasks), manifest)


def load_prepared(folder: str | Path, task_names: Sequence[str] | None = None) -> PreparedData:
    """Open what ``prepare`` wrote.

    Args:
        folder: where to.
        task_names: the tasks needed; all that there are by default.

    Raises:
        DataError: the folder was not completely prepared, or lacks a task.
    """
    root = Path(folder)
    remedy = "run `dynamorouter prepare RECIPE --out ...` first"
    if not (root / MANIFEST).is_file():
        raise DataError(f"{root} holds no completely prepared data; {remedy}")
    manifest = read_form(root / MANIFEST, format=FORMAT, entries={"tasks": dict}, error=DataError, remedy=remedy)
    prepared = list(manifest["tasks"])
    lacking = [name for name in task_names or () if name not in prepared]
    if lacking:
        raise DataError(
            f"{root} lacks {', '.join(lacking)}, it has {', '.join(prepared)}; prepare again with all tasks"
        )
    return PreparedData(root, tuple(prepared if task_names is None else task_names), manifest)


def _check_names(tasks: Sequence[Task]) -> None:
    names = [task.name for task in tasks]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice or not names:
        again = f"; given twice: {', '.join(twice)}" if twice else ""
        raise ConfigError(f"tasks are {names}: give at least one, each once{again}")


def _digest(task: Task, task_id: int, source: str, source_options: Mapping[str, Any], options: PrepareOptions) -> str:
    """Return a hash of all that a task's splits depend on, the data itself included."""
    parts = {
        "format": FORMAT,
        "task": [task.name, task_id, task.version, task.head, task.columns.model_dump(), task.labels],
        **({} if task.null_threshold is None else {"open_questions": True}),
        "source": [source, {key: value for key, value in source_options.items() if key not in ("root", "cache_dir")}],
        "data": sources.get(source)().fingerprint(task, source_options),
        "options": options.to_json(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode("utf-8")).hexdigest()


def _write_json(path: Path, value: object) -> None:
    write_atomic(path, [json.dumps(value, ensure_ascii=False, indent=2)])


def _split_hashes(entry: dict[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of each file of a task's manifest."""
    stored_names = [_stored_name(entry["splits"], name) for name in PREPARED_SPLITS]
    return {f"{stored}.jsonl": entry["splits"][stored]["sha256"] for stored in stored_names}


def _stored_name(splits: Mapping[str, Any], name: str) -> str:
    """Return the name that a split has in a manifest: its own, or the one it had before version 0.1."""
    return NAMES_BEFORE[name] if name not in splits and name in NAMES_BEFORE else name


def _prepare_task(
    task: Task,
    task_id: int,
    folder: Path,
    source: str,
    source_options: Mapping[str, Any],
    options: PrepareOptions,
    digest: str,
) -> dict[str, Any]:
    pools = read_split_rows(task, task_id, source, source_options, options.rows.filters)
    leaks = remove_leaks(task, pools, fail=options.rows.leaks == "fail")
    splits = _held_out(task, pools, options)
    splits |= _training(task, pools["train"].records, options)
    held_out = set().union(*(_keys(splits[name]) for name in HELD_OUT_SPLITS))
    held_out |= set().union(*(pool.rows for split, pool in pools.items() if split != "train"))
    kind = head_kind(task.head)
    noisy = augmented(splits["train"], options.rows.augment, kind=kind, seed=options.seed)
    splits["train"] = splits["train"] + [record for record in noisy if key_of(record) not in held_out]
    keys = {name: _keys(records) for name, records in splits.items()}
    _prove(task, keys, held_out)
    for stale in folder.glob(".*.tmp"):
        stale.unlink(missing_ok=True)
    written = {
        name: {
            "rows": len(splits[name]),
            "sha256": write_records(folder / f"{name}.jsonl", splits[name]),
            "labels": dict(sorted(Counter(kind.stratum(record.target) for record in splits[name]).items())),
        }
        for name in PREPARED_SPLITS
    }
    entry = {
        "digest": digest,
        "task_id": task_id,
        "version": task.version,
        "source": source,
        "counts": {split: dict(sorted(pool.counts.items())) for split, pool in pools.items()},
        "leaks": {"found": leaks, "left": 0},
        "shared_by_training_splits": len(keys["train"] & (keys["router"] | keys["joint"])),
        "splits": written,
    }
    _write_json(folder / MANIFEST, entry)
    return entry


def _held_out(task: Task, pools: Mapping[str, SplitRows], options: PrepareOptions) -> dict[str, list[Record]]:
    """Draw validation, calibration and test, carving them from train where the source has no rows for them."""
    kind = head_kind(task.head)
    sizes = {
        "validation": options.select_rows,
        "calibration": options.calibrate_rows,
        "test": options.report_rows,
    }
    splits: dict[str, list[Record]] = {}
    if "test" in pools:
        test_size = {"test": sizes.pop("test")}
        splits, _ = draw(pools["test"].records, test_size, kind=kind, seed=options.seed, purpose="test")
    if "validation" in pools:
        records = pools["validation"].records
        parts, _ = draw(records, shrink(sizes, len(records)), kind=kind, seed=options.seed, purpose="validation")
    else:
        train = pools["train"]
        shares = shrink(sizes, int(len(train.rows) * options.carve))
        parts, _ = draw(train.records, shares, kind=kind, seed=options.seed, purpose="carve")
        train.drop([key_of(record) for part in parts.values() for record in part], "carved")
    splits |= parts
    empty = [name for name in HELD_OUT_SPLITS if not splits[name]]
    if empty:
        raise DataError(
            f"task {task.name!r}: too few rows for {', '.join(empty)} "
            f"({'; '.join(f'{split}: {pool.told()}' for split, pool in pools.items())}); "
            "give more rows of validation, or of train, where they are taken from without any"
        )
    return splits


def _training(task: Task, records: list[Record], options: PrepareOptions) -> dict[str, list[Record]]:
    """Draw train, router and joint, disjoint unless the rows run out and the options allow an overlap."""
    kind = head_kind(task.head)
    others = {"router": options.router_rows, "joint": options.joint_rows}
    available = len(records)
    if options.train_rows is None:
        least = available if options.rows.when_short == "overlap" else (available + 1) // 2
        train_rows = max(least, available - sum(others.values()))
    else:
        train_rows = options.train_rows
    sizes_asked = {**others, "train": train_rows}
    short = sum(sizes_asked.values()) > available
    if short and options.rows.when_short == "fail":
        raise DataError(
            f"task {task.name!r}: {available} training rows for {sizes_asked}; lower the sizes, or set when_short to "
            "'shrink' (all splits smaller) or 'overlap' (router and joint rows may be in train)"
        )
    if not short or options.rows.when_short == "shrink":
        if short and options.train_rows is None:
            sizes = {**shrink(others, available - train_rows), "train": train_rows}
        else:
            sizes = shrink(sizes_asked, available)
        splits, _ = draw(records, sizes, kind=kind, seed=options.seed, purpose="train")
        return splits
    asked = {"train": min(train_rows, available), **others}
    splits, _ = draw(records, asked, kind=kind, seed=options.seed, purpose="train")
    for name, size in others.items():
        lacking = size - len(splits[name])
        again, _ = draw(splits["train"], {name: lacking}, kind=kind, seed=options.seed, purpose=f"overlap {name}")
        splits[name] = splits[name] + again[name]
    return splits


def _keys(records: Sequence[Record]) -> set[str]:
    return {key_of(record) for record in records}


def _prove(task: Task, keys: Mapping[str, set[str]], held_out: set[str]) -> None:
    """Check on exactly what is to be written that nothing held out, drawn or not, is in a training split.

    Raises:
        DataError: something is, or two held-out splits share rows; the message counts them.
    """
    shared = {f"{name} and held-out rows": len(keys[name] & held_out) for name in TRAIN_SPLITS}
    shared |= {
        f"{first} and {second}": len(keys[first] & keys[second]) for first, second in combinations(HELD_OUT_SPLITS, 2)
    }
    leaks = ", ".join(f"{count} shared by {names}" for names, count in shared.items() if count)
    if leaks:
        raise DataError(f"task {task.name!r}: the splits leak: {leaks}; nothing was written: report this as a bug")
