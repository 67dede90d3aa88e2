"""Scoring a system: every row with its own expert, and with the one that the router chooses.

A row that is routed wrongly is scored on what the chosen expert answers; none is left out.

Letters: N rows, E experts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamorouter.data.native import has_split, read_split
from dynamorouter.errors import DataError, one_of
from dynamorouter.inference.policy import ABSTAINED, ROUTED, Assignment
from dynamorouter.inference.writing import text_answer
from dynamorouter.metrics.base import Metric, get_metric, row_statistics
from dynamorouter.metrics.bootstrap import bootstrap_ci
from dynamorouter.metrics.routing import router_metrics
from dynamorouter.model.text.tokenize import TextPair
from dynamorouter.system.system import System
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task
from dynamorouter.utils.devices import now
from dynamorouter.utils.environment import peak_memory_mb, versions
from dynamorouter.utils.files import write_json
from dynamorouter.utils.jsonl import SkipCount
from dynamorouter.utils.progress import SILENT, Progress, shown_progress


@dataclass(frozen=True, slots=True)
class Answered:
    """What a system made of some rows.

    Attributes:
        oracle: answer of each row's own expert.
        routed: answer of the expert that the router chose; ``None`` where it abstained.
        probabilities: over all experts, ``(N, E)``.
        chosen: the chosen expert, -1 where the router abstained, ``(N,)``.
        seconds: time taken, tokenisation included, by what was done.
        mixture: experts and weights ``(N, K)`` of each row, where several answer it together.
    """

    oracle: list[Answer | None]
    routed: list[Answer | None]
    probabilities: np.ndarray[Any, np.dtype[np.float64]]
    chosen: np.ndarray[Any, np.dtype[np.int64]]
    seconds: Mapping[str, float]
    mixture: tuple[Tensor, Tensor] | None = None


def answer_all(
    system: System,
    rows: Sequence[TextPair],
    experts: Sequence[int],
    *,
    skip_generation: Collection[int] = (),
    progress: Progress = SILENT,
) -> Answered:
    """Answer every row twice, sharing the trunk and the route; where the router is right the answer is the same.

    Args:
        system: with a router.
        rows: texts and pairs.
        experts: the right expert of each.
        skip_generation: rows for which no text is generated, as no metric would read it.
        progress: told how far it is.
    """
    oracle: list[Answer | None] = [None] * len(rows)
    routed: list[Answer | None] = [None] * len(rows)
    probabilities = np.zeros((len(rows), len(system.experts)))
    chosen = np.full(len(rows), ABSTAINED, dtype=np.int64)
    mixed: dict[int, tuple[Tensor, Tensor]] = {}
    seconds = dict.fromkeys(("trunk", "route", "answer"), 0.0)
    engine, device = system.engine, system.bases[system.router_base].device
    progress.start("score", len(rows))
    before = now(device)
    for positions, chunk in engine.chunks(rows):
        clock = _lap(seconds, "trunk", before, device)
        labels = [experts[i] for i in positions]
        route = engine.route(chunk, labels=labels)
        assignment = engine.policy.assign(route, [ROUTED] * len(chunk))
        clock = _lap(seconds, "route", clock, device)
        skipped = {column for column, i in enumerate(positions) if i in skip_generation}
        oracle_answers = engine.answer(chunk, Assignment.fixed(labels), skip_generation=skipped)
        clock = _lap(seconds, "answer", clock, device)
        if assignment.mixture is not None:
            routed_answers = engine.answer(chunk, assignment, skip_generation=skipped)
            mixed.update(zip(positions, zip(*assignment.mixture, strict=True), strict=True))
        else:
            is_right = [expert == label for expert, label in zip(assignment.experts, labels, strict=True)]
            wrong_experts = [ABSTAINED if hit else e for e, hit in zip(assignment.experts, is_right, strict=True)]
            wrong_answers = engine.answer(chunk, Assignment.fixed(wrong_experts), skip_generation=skipped)
            routed_answers = [
                oracle_answer if hit else wrong_answer
                for hit, oracle_answer, wrong_answer in zip(is_right, oracle_answers, wrong_answers, strict=True)
            ]
        probabilities[positions] = route.probabilities.cpu().numpy()
        chosen[positions] = assignment.experts
        for i, oracle_answer, routed_answer in zip(positions, oracle_answers, routed_answers, strict=True):
            oracle[i], routed[i] = oracle_answer, routed_answer
        progress.advance(len(positions))
        before = time.perf_counter()
    mixture = [torch.stack(side) for side in zip(*(mixed[i] for i in range(len(rows))), strict=True)] if mixed else []
    return Answered(oracle, routed, probabilities, chosen, seconds, (mixture[0], mixture[1]) if mixture else None)


def score_system(
    system: System,
    records: Mapping[str, Sequence[Record]],
    *,
    seed: int = 0,
    resamples: int = 1000,
    config_hash: str = "",
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Score a system on rows of its tasks.

    Args:
        system: with a router.
        records: rows by task.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        config_hash: of the settings that made the system.
        progress: told how far it is.

    Returns:
        The report: ``tasks``, ``router``, ``normalised``, ``cost``, ``versions``, ``seed``, ``config_hash``.
    """
    rows: list[TextPair] = []
    experts: list[int] = []
    slices: dict[str, slice] = {}
    for name, task_records in records.items():
        slices[name] = slice(len(rows), len(rows) + len(task_records))
        rows += [(record.text, record.pair) for record in task_records]
        experts += [system.index(name)] * len(task_records)
    judged_by = {name: _metrics(system.experts[system.index(name)].task) for name in records}
    unread = {
        i for name, part in slices.items() if all(m.reads_loss for m in judged_by[name]) for i in _positions(part)
    }
    answered = answer_all(system, rows, experts, skip_generation=unread, progress=progress)
    for name, part in slices.items():
        if any(metric.reads_loss for metric in judged_by[name]):
            _add_losses(system, answered, records[name], experts, part)
    tasks = {
        name: _task_report(
            system.experts[system.index(name)].task,
            records[name],
            {"oracle": answered.oracle[part], "routed": answered.routed[part]},
            seed=seed,
            resamples=resamples,
        )
        for name, part in slices.items()
    }
    router, normalised = _routing_report(system, tasks, experts, answered)
    return {
        "tasks": tasks,
        "router": router,
        "normalised": normalised,
        "cost": cost(system, rows=len(rows), seconds=answered.seconds),
        "versions": versions(),
        "seed": seed,
        "config_hash": config_hash or str(system.info.get("config_hash", "")),
    }


def _routing_report(
    system: System, tasks: Mapping[str, Mapping[str, Any]], experts: Sequence[int], answered: Answered
) -> tuple[dict[str, Any], float]:
    """Return how the router did, and how much of the scores routing keeps.

    An expert that the router does not know, such as a merge beside its sources, is no fault of the router's.
    """
    routable = {system.index(name) for name in system.names if name in system.classes}
    all_ratios = [_retained(row) for name, row in tasks.items() if system.index(name) in routable]
    ratios = [ratio for ratio in all_ratios if ratio is not None]
    fair = [i for i, expert in enumerate(experts) if expert in routable]
    router = {}
    if fair:
        true, chances, chosen = [experts[i] for i in fair], answered.probabilities[fair], answered.chosen[fair]
        router = router_metrics(true, chances, system.names, chosen=chosen)
    return {**router, "abstained": float((answered.chosen < 0).mean())}, float(np.mean(ratios)) if ratios else 0.0


def _retained(row: Mapping[str, Any]) -> float | None:
    """Return how much of a task's score routing keeps; ``None`` where there is none to keep."""
    top, bottom = row["routed"], row["oracle"]
    if not get_metric(row["metric"]).higher_is_better:
        top, bottom = bottom, top
    return top / bottom if top is not None and bottom else None


def _number(value: float) -> float | None:
    """Return a number, and ``None`` for what is none, which JSON has not."""
    return float(value) if math.isfinite(value) else None


def _metrics(task: Task) -> list[Metric]:
    return [get_metric(name) for name in task.metrics]


def _positions(part: slice) -> range:
    return range(part.start, part.stop)


def _add_losses(
    system: System, answered: Answered, records: Sequence[Record], experts: Sequence[int], part: slice
) -> None:
    """Note with the answers of a task what the target texts cost the right expert, and the one that was chosen."""
    chosen = answered.chosen[part].tolist()
    oracle_costs = system.engine.losses(records, Assignment.fixed(experts[part]))
    mixed = None if answered.mixture is None else (answered.mixture[0][part], answered.mixture[1][part])
    routed_costs = system.engine.losses(records, Assignment.fixed(chosen, mixed))
    lost = [i for i, cost in enumerate(routed_costs) if cost is None and chosen[i] >= 0]
    if lost:  # sent to an expert that does not generate: what the base alone would have cost
        right_experts = [experts[part][i] for i in lost]
        nothing = torch.tensor(right_experts)[:, None], torch.zeros(len(right_experts), 1)
        bare = system.engine.losses([records[i] for i in lost], Assignment.fixed(right_experts, nothing))
        for i, cost in zip(lost, bare, strict=True):
            routed_costs[i], answered.routed[_positions(part)[i]] = cost, text_answer("")
    for answers, costs in ((answered.oracle, oracle_costs), (answered.routed, routed_costs)):
        for i, cost in zip(_positions(part), costs, strict=True):
            answer = answers[i]
            if answer is not None and cost is not None:
                answers[i] = replace(answer, nll=cost[0], tokens=cost[1])


def _task_report(
    task: Task,
    records: Sequence[Record],
    answers: Mapping[str, Sequence[Answer | None]],
    *,
    seed: int,
    resamples: int,
) -> dict[str, Any]:
    """Score one task's answers by all of its metrics; the first is the primary one."""
    scores: dict[str, dict[str, float | None]] = {}
    intervals: dict[str, list[float | None]] = {}
    for arm, arm_answers in answers.items():
        scores[arm] = {}
        for name in task.metrics:
            metric = get_metric(name)
            statistics = row_statistics(name, task, arm_answers, records)
            scores[arm][name] = _number(float(metric.reduce(statistics.sum(axis=0))))
            if name == task.metrics[0]:
                ends = bootstrap_ci(statistics, metric.reduce, seed=seed, resamples=resamples)
                intervals[arm] = [_number(end) for end in ends]
    primary = task.metrics[0]
    return {
        "metric": primary,
        "oracle": scores["oracle"][primary],
        "routed": scores["routed"][primary],
        "n": len(records),
        "ci95": intervals,
        "all": scores,
    }


def cost(system: System, *, rows: int, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Compute what the system takes: numbers, bytes and time."""
    base = system.bases[system.router_base]
    numbers = base.parameters()
    experts = {expert.name: expert.parameters() for expert in system.experts}
    banks = [bank for mounted in system.engine.mounted.values() for bank in mounted.banks.values()]
    numbers_in_banks = sum(bank.a.numel() + bank.b.numel() for bank in banks) * 4
    disk = {} if system.library is None else {name: system.library.bytes(name) for name in system.names}
    share = {e.name: e.parameters() / system.bases[e.base].parameters() for e in system.experts}
    return {
        "base_parameters": numbers,
        "expert_parameters": experts,
        "expert_share_of_base": share,
        "expert_bytes_on_disk": disk,
        "expert_bytes_in_memory": round(numbers_in_banks / max(1, len(system.experts))),
        "rows": rows,
        "ms_per_row": {name: 1000 * value / max(1, rows) for name, value in seconds.items()},
        "peak_memory_mb": peak_memory_mb(),
    }


def _lap(seconds: dict[str, float], name: str, before: float, device: torch.device) -> float:
    clock = now(device)
    seconds[name] += clock - before
    return clock


def score(
    system: Path,
    data: Path,
    split: str,
    out: Path,
    *,
    limit: int | None = None,
    skip_bad: bool = False,
    keep_seen: bool = False,
) -> dict[str, Any]:
    """Score the system's tasks that ``data`` holds as ``TASK/SPLIT.jsonl`` in native columns, and write ``out``.

    Rows that the system has learned from are left out and counted under ``seen``.

    Args:
        system: a saved system.
        data: folder of folders.
        split: name of the files.
        out: where the scores are written.
        limit: most rows per task, from the top of each file.
        skip_bad: leave broken rows out and count them, instead of stopping at the first.
        keep_seen: score the rows that the system has learned from, too.

    Raises:
        DataError: ``data`` holds none of the system's tasks, a row is broken, or all were learned from.
    """
    if out.is_dir():
        raise DataError(f"--out {str(out)!r} is a folder; name a file, such as {str(out / 'scores.json')!r}")
    out.parent.mkdir(parents=True, exist_ok=True)
    loaded = System.load(system)
    skipped = SkipCount()
    records: dict[str, list[Record]] = {}
    for expert in loaded.experts:
        if has_split(data, expert.task, split):
            counted = skipped if skip_bad else None
            records[expert.name] = read_split(expert.task, data, split, limit=limit, skip_bad=counted)
    if not records:
        folders = one_of(path.name for path in data.iterdir() if path.is_dir()) if data.is_dir() else "no such folder"
        raise DataError(
            f"{data} holds none of the system's tasks with a split {split!r}: looked for "
            f"{one_of(loaded.names)} and found {folders or 'no folder'}; give --data DIR with DIR/TASK/{split}.jsonl"
        )
    seen = {"kept": keep_seen, "left_out": {}, "unknown": [name for name in loaded.unknown_rows() if name in records]}
    if not keep_seen:
        unseen = {name: loaded.seen.unseen(rows) for name, rows in records.items()}
        seen["left_out"] = {n: len(rows) - len(unseen[n]) for n, rows in records.items() if len(rows) > len(unseen[n])}
        records = {name: rows for name, rows in unseen.items() if rows}
    if not records:
        raise DataError(
            f"the system has learned from all rows of split {split!r} in {data}; give rows that it has not seen, or "
            "score these all the same with --keep-seen"
        )
    with shown_progress() as progress:
        scores = score_system(loaded, records, seed=int(loaded.info.get("seed", 0)), progress=progress)
    scores["skipped"] = skipped.count
    scores["seen"] = seen
    scores["not_scored"] = [name for name in loaded.names if name not in records]
    write_json(out, scores)
    return scores
