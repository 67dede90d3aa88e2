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
    places = [(rows, split, record) for rows in tasks for split, own in rows.splits.items() for record in own]
    keys = [text_key(record.text, record.pair) for _, _, record in places]
    near = clusters([compared(rows, record) for rows, _, record in places], seed=seed)
    wheres = [(rows.task.name, split) for rows, split, _ in places]
    targets: dict[tuple[str, str], set[str]] = defaultdict(set)
    for (name, _), key, (_, _, record) in zip(wheres, keys, places, strict=True):
        targets[name, key].add(json.dumps(record.target, sort_keys=True))
    found: dict[str, dict[str, dict[str, int]]] = {}
    for rows in tasks:
        found[rows.task.name] = {}
        for split, own in rows.splits.items():
            here = [i for i, where in enumerate(wheres) if where == (rows.task.name, split)]
            counts = {
                "rows": len(own),
                "again": len(own) - len({keys[i] for i in here}),
                "contradicting": sum(len(targets[rows.task.name, keys[i]]) > 1 for i in here),
                "near_again": len(own) - len({near[i] for i in here}),
            }
            if split != "train" and "train" in rows.splits:
                train = [i for i, where in enumerate(wheres) if where == (rows.task.name, "train")]
                counts["in_train"] = _shared([keys[i] for i in train], [keys[i] for i in here])
                counts["near_in_train"] = _shared([near[i] for i in train], [near[i] for i in here])
            found[rows.task.name][split] = counts
    return {"similar": SIMILAR, "tasks": found, "between": _between(tasks, wheres, keys, near.tolist())}


def _shared(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return how many of the second are among the first."""
    return int(np.isin(np.array(second), np.array(first)).sum()) if first and second else 0


def _between(
    tasks: Sequence[TaskRows], wheres: Sequence[tuple[str, str]], keys: Sequence[str], near: Sequence[int]
) -> list[dict[str, Any]]:
    by_task: dict[str, tuple[Counter[str], Counter[int]]] = {rows.task.name: (Counter(), Counter()) for rows in tasks}
    for (name, _), key, cluster in zip(wheres, keys, near, strict=True):
        by_task[name][0][key] += 1
        by_task[name][1][cluster] += 1
    found = []
    for one, two in combinations(by_task, 2):
        equal = sum(count for key, count in by_task[two][0].items() if key in by_task[one][0])
        alike = sum(count for cluster, count in by_task[two][1].items() if cluster in by_task[one][1])
        if equal or alike:
            found.append({"first": one, "second": two, "equal": equal, "near": alike})
    return found
