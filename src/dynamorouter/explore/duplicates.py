"""The same row twice, and nearly the same row twice: within a split, between splits, and between tasks."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from dynamorouter.explore.near import SIMILAR, clusters
from dynamorouter.explore.rows import TaskRows
from dynamorouter.tasks.kinds import head_kind
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.text import text_key


def compared(rows: TaskRows, record: Record) -> str:
    """Return the text that tells near-duplicates; a question's context is left out, as many questions share one."""
    is_context = head_kind(rows.task.head).pair == "context"
    return record.text if record.pair is None or is_context else f"{record.text} {record.pair}"


def duplicates(tasks: Sequence[TaskRows], *, seed: int = 0) -> dict[str, Any]:
    """Count duplicates (equal but for case, punctuation and spaces) and near-duplicates.

    Returns:
        ``tasks``: per task and split ``rows``, ``again`` (rows that an earlier one of the split equals),
        ``contradicting`` (rows whose text stands elsewhere in the task with another target), ``near_again`` (rows in a
        cluster of near-duplicates that is not their first in the split, equal ones included), and for all splits but
        train ``in_train`` and ``near_in_train``; ``between``: per pair of tasks ``equal`` and ``near``, the rows of the
        second with an equal or near one in the first, where there are any; ``similar``: the threshold.
    """
    entries = [(rows, split, record) for rows in tasks for split, records in rows.splits.items() for record in records]
    keys = [text_key(record.text, record.pair) for _, _, record in entries]
    near = clusters([compared(rows, record) for rows, _, record in entries], seed=seed)
    locations = [(rows.task.name, split) for rows, split, _ in entries]
    targets: dict[tuple[str, str], set[str]] = defaultdict(set)
    for (name, _), key, (_, _, record) in zip(locations, keys, entries, strict=True):
        targets[name, key].add(json.dumps(record.target, sort_keys=True))
    counts_by_task: dict[str, dict[str, dict[str, int]]] = {}
    for rows in tasks:
        counts_by_task[rows.task.name] = {}
        for split, records in rows.splits.items():
            members = [i for i, location in enumerate(locations) if location == (rows.task.name, split)]
            counts = {
                "rows": len(records),
                "again": len(records) - len({keys[i] for i in members}),
                "contradicting": sum(len(targets[rows.task.name, keys[i]]) > 1 for i in members),
                "near_again": len(records) - len({near[i] for i in members}),
            }
            if split != "train" and "train" in rows.splits:
                train = [i for i, location in enumerate(locations) if location == (rows.task.name, "train")]
                counts["in_train"] = _shared([keys[i] for i in train], [keys[i] for i in members])
                counts["near_in_train"] = _shared([near[i] for i in train], [near[i] for i in members])
            counts_by_task[rows.task.name][split] = counts
    return {"similar": SIMILAR, "tasks": counts_by_task, "between": _between(tasks, locations, keys, near.tolist())}


def _shared(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return how many of the second are among the first."""
    return int(np.isin(np.array(second), np.array(first)).sum()) if first and second else 0


def _between(
    tasks: Sequence[TaskRows], locations: Sequence[tuple[str, str]], keys: Sequence[str], near: Sequence[int]
) -> list[dict[str, Any]]:
    by_task: dict[str, tuple[Counter[str], Counter[int]]] = {rows.task.name: (Counter(), Counter()) for rows in tasks}
    for (name, _), key, cluster in zip(locations, keys, near, strict=True):
        by_task[name][0][key] += 1
        by_task[name][1][cluster] += 1
    overlaps = []
    for first, second in combinations(by_task, 2):
        equal = sum(count for key, count in by_task[second][0].items() if key in by_task[first][0])
        alike = sum(count for cluster, count in by_task[second][1].items() if cluster in by_task[first][1])
        if equal or alike:
            overlaps.append({"first": first, "second": second, "equal": equal, "near": alike})
    return overlaps
