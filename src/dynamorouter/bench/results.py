"""The rows of a comparison: one line of JSON for each arm, task and seed, appended whole or not at all.

Beside each row lie its per-example records, so that paired tests can be made later without running anything again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynamorouter.config.schema import Config
from dynamorouter.errors import DataError
from dynamorouter.metrics.bootstrap import Array
from dynamorouter.runs.run import NO_INFLUENCE
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.record import Record
from dynamorouter.utils.files import writing
from dynamorouter.utils.jsonl import read_appended, read_jsonl

ROWS, ITEMS = "rows.jsonl", "items"
VOLATILE = ("seconds", "peak_memory_mb", "versions")
"""What may differ between two runs of the same settings."""
TIMES = ("merge_seconds",)
"""Notes that may differ too."""
GROWS = ("system", "arms", "seeds", "permutations", "diagram")
"""Settings of a comparison that change no row: with others of them it can go on."""
FREE = (*NO_INFLUENCE, *(f"bench.{name}" for name in GROWS))
"""The same as ``open_run`` takes them."""


def row_digest(config: Config) -> str:
    """Return the ``config_hash`` of rows: it changes with every setting that may change a row, and with no other."""
    tree = {key: value for key, value in config.for_digest().items() if key not in NO_INFLUENCE}
    tree["bench"] = {key: value for key, value in tree["bench"].items() if key not in GROWS}
    return hashlib.sha256(json.dumps(tree, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


class RowFile:
    """Rows that are there, and a place for more.

    Args:
        path: the file; a last line that was cut off is removed.

    Raises:
        DataError: a line before the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        complete = 0
        for row, end in read_appended(path):
            self.rows.append(row)
            complete = end
        if path.is_file() and complete < path.stat().st_size:
            os.truncate(path, complete)

    def append(self, row: dict[str, Any]) -> None:
        """Write a row to the end, and let it reach the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as handle:
            handle.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            handle.flush()
            os.fsync(handle.fileno())
        self.rows.append(row)

    def has(self, **values: object) -> bool:
        """Tell whether a row with these values is there."""
        return any(all(row.get(key) == value for key, value in values.items()) for row in self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


def example_path(arm: str, task: str, seed: int) -> str:
    """Return where the per-example records of a row lie, below the comparison's folder."""
    return f"{ITEMS}/{seed}/{arm}/{task}.jsonl"


def write_example_records(
    path: Path, records: Sequence[Record], answers: Sequence[Answer | None], statistics: Array
) -> None:
    """Write one line for each example: its id, what was answered, and the numbers of the primary metric."""
    with writing(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        for record, answer, numbers in zip(records, answers, statistics, strict=True):
            value = None if answer is None else answer.value
            line = {"id": record.id, "answer": value, "numbers": [float(n) for n in numbers]}
            handle.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_example_records(path: Path) -> tuple[list[str], Array]:
    """Return ids, and the numbers of the primary metric ``(N, K)``.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        items = [item for _, item in read_jsonl(path)]
        return [item["id"] for item in items], np.array([item["numbers"] for item in items], dtype=float)
    except (DataError, ValueError, KeyError) as error:
        raise DataError(
            f"the per-example records of a row, {path}, cannot be read ({error}); remove the row from {ROWS} and resume"
        ) from error


def stable(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without what may differ between two runs of the same settings."""
    unchanged = {key: value for key, value in row.items() if key not in VOLATILE}
    unchanged["notes"] = {key: value for key, value in dict(row.get("notes", {})).items() if key not in TIMES}
    return unchanged
