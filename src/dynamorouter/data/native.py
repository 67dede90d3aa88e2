"""The splits of a folder in a task's native columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dynamorouter.data.convert import native_records
from dynamorouter.data.sources import load as load_rows
from dynamorouter.data.sources.local import has_split as local_has_split
from dynamorouter.errors import DataError
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task
from dynamorouter.utils.files import checked_name
from dynamorouter.utils.jsonl import SkipCount


def has_split(data: Path, task: Task, split: str) -> bool:
    """Tell whether a folder holds a split of a task."""
    checked_name(task.name, kind="task")
    return local_has_split(task, checked_name(split, kind="split"), _options(task, data))


def read_split(
    task: Task, data: Path, split: str, *, limit: int | None = None, skip_bad: SkipCount | None = None
) -> list[Record]:
    """Read rows of one task from a folder in native columns.

    Raises:
        DataError: a row, named by number, is broken and ``skip_bad`` is not given, or there are none.
    """
    rows = load_rows(task, split, "local", _options(task, data), skip_bad=skip_bad)
    where = f"task {task.name!r}, split {split!r}"
    records = native_records(task, rows, where=where, id_prefix=split, skip_bad=skip_bad, limit=limit)
    if not records:
        raise DataError(f"{data / task.name} holds no rows in its split {split!r}; give a file with at least one")
    return records


def _options(task: Task, data: Path) -> dict[str, Any]:
    """Return what the task says of local files, with ``data`` as their root."""
    return {**task.sources.get("local", {}), "root": str(data)}
