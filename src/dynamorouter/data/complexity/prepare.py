"""From one instruction data set to a folder of rows per tier, each row with its complexity.

``DIR/<tier>/<split>.jsonl`` holds rows in the data's own columns and ``complexity`` beside them, which local data is
prepared from as usual; ``DIR/features.jsonl`` what was measured of every row, and ``DIR/manifest.json`` how. A row
is measured once. Rows of train that are held out as well are removed before there are tiers, so that a leak cannot
hide in another tier.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dynamorouter.data.complexity.analyzer import Analyzer
from dynamorouter.data.complexity.config import ComplexityConfig, Method
from dynamorouter.data.complexity.features import Features
from dynamorouter.data.complexity.record import KEY
from dynamorouter.data.complexity.score import CAPS, WEIGHTS, ScoreOptions, score
from dynamorouter.data.complexity.tiers import Tiers, fit_tiers
from dynamorouter.data.config import FilterConfig, Leaks
from dynamorouter.data.dedup import SplitRows, read_split_rows, remove_leaks
from dynamorouter.data.sources import source_options, sources
from dynamorouter.errors import ConfigError, DataError
from dynamorouter.tasks.kinds import head_kind
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task
from dynamorouter.utils.files import read_finished, write_json
from dynamorouter.utils.jsonl import write_atomic
from dynamorouter.utils.options import FOR_DIGEST
from dynamorouter.utils.progress import SILENT, Progress

FORMAT = 1
MANIFEST, FEATURES = "manifest.json", "features.jsonl"
LEAST_HELD_OUT = 6
"""Fewest held-out rows of a tier: two each for early stopping, temperature and report."""


@dataclass(frozen=True, slots=True)
class TierOptions:
    """How rows get their tier, and which rows do.

    Attributes:
        complexity: how they are measured, scored and parted.
        filters: which rows are left out first.
        leaks: drop rows of train that are held out as well, or fail.
        seed: of clusters.
    """

    complexity: ComplexityConfig = field(default_factory=ComplexityConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)
    leaks: Leaks = "drop"
    seed: int = 0

    @property
    def score(self) -> ScoreOptions:
        """Weights and caps, those that the settings leave open by default."""
        return ScoreOptions({**WEIGHTS, **self.complexity.weights}, {**CAPS, **self.complexity.caps})

    def fit(self, train: Measured, *, count: int, method: Method | None = None) -> Tiers:
        """Fit the rule that gives a row one of ``count`` tiers, on train rows alone; see ``fit_tiers``."""
        return fit_tiers(
            method or self.complexity.tiers,
            train.table(),
            np.array(train.scores),
            count=count,
            thresholds=self.complexity.thresholds,
            quantiles=self.complexity.quantiles,
            seed=self.seed,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values, under the names that digests are made of."""
        parting = self.complexity.model_dump(include={"pipeline", "thresholds", "quantiles", "least_rows"})
        rows = {**self.filters.model_dump(context=FOR_DIGEST), "leaks": self.leaks, "seed": self.seed}
        return {**parting, "method": self.complexity.tiers, "score": asdict(self.score), **rows}


@dataclass(frozen=True, slots=True)
class Measured:
    """The rows of one split, measured.

    Attributes:
        records: the rows.
        features: of each row.
        scores: of each row, 0 to 1.
    """

    records: list[Record]
    features: list[Features]
    scores: list[float]

    def table(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the features as ``(N, F)``."""
        return np.array([measures.row() for measures in self.features], dtype=np.float64).reshape(
            len(self.features), -1
        )


@dataclass(frozen=True, slots=True)
class Parted:
    """The rows of all splits, each in its tier.

    Attributes:
        names: of the tiers, the simplest first.
        rule: that gave each row its tier.
        splits: the rows by split.
        tiers: by split the index of each row's tier.
    """

    names: tuple[str, ...]
    rule: Tiers
    splits: Mapping[str, Measured]
    tiers: Mapping[str, Sequence[int]]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of rows by split and tier."""
        return {
            split: {name: list(tiers).count(i) for i, name in enumerate(self.names)}
            for split, tiers in self.tiers.items()
        }


def measured(
    records: Sequence[Record], analyzer: Analyzer, options: ScoreOptions, *, progress: Progress = SILENT
) -> Measured:
    """Measure and score rows; their targets are not read."""
    features = list(analyzer.features([(record.text, record.pair) for record in records], progress=progress))
    return Measured(list(records), features, [score(measures, options) for measures in features])


def prepare_tiers(
    tasks: Sequence[Task],
    out: Path,
    *,
    source: str,
    overrides: Mapping[str, Any] | None = None,
    options: TierOptions,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Write the rows of all tiers, or reuse those that were completely written with the same settings and data.

    Args:
        tasks: the tiers, the simplest first; all read the same data.
        out: the folder.
        source: name of the data's source.
        overrides: of the source's options, such as ``root``.
        options: how rows get their tier.
        progress: told how far it is.

    Returns:
        The manifest: pipeline, rule, rows by split and tier.

    Raises:
        ConfigError: the tasks do not read the same data, or an option is wrong.
        DataError: the data is missing or broken, or a tier has too few rows; the message counts all of them.
        MissingExtraError: spaCy is not installed.
    """
    spec = _common(tasks, source)
    merged = source_options(spec, source, overrides)
    analyzer = Analyzer.load(options.complexity.pipeline)
    names = [task.name for task in tasks]
    digest = _digest(spec, names, source, merged, options, analyzer.name)
    done = read_finished(out / MANIFEST, digest=digest, hashes=lambda manifest: manifest["files"])
    if done is not None:
        return done
    pools = read_split_rows(spec, 0, source, merged, options.filters)
    leaks = remove_leaks(spec, pools, fail=options.leaks == "fail")
    parted = _part(pools, names, analyzer, options, progress)
    manifest = {
        "format": FORMAT,
        "digest": digest,
        "pipeline": analyzer.name,
        "score": asdict(options.score),
        "rule": parted.rule.to_json(),
        "rows": parted.counts(),
        "read": {split: dict(sorted(pool.counts.items())) for split, pool in pools.items()},
        "leaks": {"found": leaks, "left": 0},
        "files": _write(out, spec, parted),
    }
    write_json(out / MANIFEST, manifest)
    return manifest


def _common(tasks: Sequence[Task], source: str) -> Task:
    """Return what all tiers have in common: one data set, without the column that is only made here."""
    first = tasks[0]
    if len(tasks) < 2:
        raise ConfigError(f"the only tier is {first.name!r}; name at least two tasks, the simplest first")
    for task in tasks:
        shared = (task.columns, task.sources.get(source), task.head)
        if shared != (first.columns, first.sources.get(source), first.head):
            raise ConfigError(
                f"tiers {first.name!r} and {task.name!r} do not read the same data: columns, head and "
                f"sources.{source} must be the same for all tiers"
            )
        if not head_kind(task.head).is_generative or KEY not in task.columns.extra:
            raise ConfigError(
                f"task {task.name!r} cannot be a tier: its head is {task.head!r} and columns.extra is "
                f"{dict(task.columns.extra)}; tiers need a head that writes, and columns.extra: {{{KEY}: {KEY}}}"
            )
    extra = {name: column for name, column in first.columns.extra.items() if name != KEY}
    return first.model_copy(update={"columns": first.columns.model_copy(update={"extra": extra})})


def _digest(
    spec: Task, names: Sequence[str], source: str, merged: Mapping[str, Any], options: TierOptions, pipeline: str
) -> str:
    """Return a hash of all that the tiers depend on, the data and the parser included."""
    parts = {
        "format": FORMAT,
        "tiers": list(names),
        "columns": spec.columns.model_dump(),
        "source": [source, {key: value for key, value in merged.items() if key not in ("root", "cache_dir")}],
        "data": sources.get(source)().fingerprint(spec, merged),
        "options": options.to_json(),
        "pipeline": pipeline,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _part(
    pools: Mapping[str, SplitRows], names: Sequence[str], analyzer: Analyzer, options: TierOptions, progress: Progress
) -> Parted:
    """Measure all rows and give each its tier; refuses tiers that there is too little to learn or to measure of."""
    progress.start("complexity", sum(len(pool.rows) for pool in pools.values()))
    splits = {
        split: measured(pool.records, analyzer, options.score, progress=progress) for split, pool in pools.items()
    }
    rule = options.fit(splits["train"], count=len(names))
    tiers = {split: rule.assign(part.table(), np.array(part.scores)).tolist() for split, part in splits.items()}
    parted = Parted(tuple(names), rule, splits, tiers)
    _check_enough(parted.counts(), rule, options.complexity.least_rows)
    return parted


def _check_enough(counts: Mapping[str, Mapping[str, int]], rule: Tiers, least_train: int) -> None:
    least = {split: least_train if split == "train" else LEAST_HELD_OUT for split in counts}
    short = [
        f"tier {name!r} has {rows} rows of {split} and needs {least[split]}"
        for split, by_tier in counts.items()
        for name, rows in by_tier.items()
        if rows < least[split]
    ]
    if short:
        listed = "; ".join(
            f"{split}: {', '.join(f'{n} {c}' for n, c in by_tier.items())}" for split, by_tier in counts.items()
        )
        remedy = "give more rows"
        if rule.method != "quantile":
            remedy = "set complexity.tiers=quantile for tiers of the same size, or other complexity.thresholds"
        where = f"cuts {', '.join(f'{cut:.3f}' for cut in rule.cuts)}" if rule.cuts else "clusters"
        raise DataError(
            f"complexity.tiers={rule.method} ({where}) leaves too little: {'; '.join(short)} (rows by tier: {listed}); "
            f"{remedy}; 'dynamorouter explore complexity' shows the scores"
        )


def _write(out: Path, spec: Task, parted: Parted) -> dict[str, str]:
    """Write rows and features, and return the SHA-256 of each file."""
    files, lines = {}, []
    for split, part in parted.splits.items():
        tiers = parted.tiers[split]
        for index, name in enumerate(parted.names):
            members = [i for i, tier in enumerate(tiers) if tier == index]
            rows = (json.dumps(_row(spec, part, i, split), ensure_ascii=False) for i in members)
            files[f"{name}/{split}.jsonl"] = write_atomic(out / name / f"{split}.jsonl", rows)
        lines += [
            json.dumps(
                {"id": f"{split}-{i}", "split": split, "tier": parted.names[tier], KEY: part.scores[i]}
                | asdict(part.features[i])
            )
            for i, tier in enumerate(tiers)
        ]
    files[FEATURES] = write_atomic(out / FEATURES, lines)
    return files


def _row(spec: Task, part: Measured, i: int, split: str) -> dict[str, Any]:
    record, columns = part.records[i], spec.columns
    target = record.target if isinstance(record.target, dict) else {"texts": [str(record.target)]}
    row: dict[str, Any] = {columns.id or "id": f"{split}-{i}", columns.text: record.text}
    if columns.pair is not None:
        row[columns.pair] = record.pair or ""
    row[columns.target] = target["texts"]
    row |= {column: target[name] for name, column in columns.extra.items()}
    return {**row, KEY: part.scores[i]}
