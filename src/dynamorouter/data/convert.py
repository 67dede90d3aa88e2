"""From a native row to a record, or to the reason why it cannot be one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from dynamorouter.data.sources import Row
from dynamorouter.tasks.kinds import RowProblem, head_kind
from dynamorouter.tasks.kinds.base import NativeRow
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task
from dynamorouter.tasks.text import MAX_CHARS, text_problem
from dynamorouter.utils.jsonl import SkipCount, bad_row


def convert(
    task: Task, task_id: int, row: dict[str, Any], id: str, *, max_chars: int = MAX_CHARS, fixed: Counter[str]
) -> Record | RowProblem:
    """Turn one native row into a record.

    Args:
        task: whose row it is.
        task_id: position of the task in the system's list.
        row: the native columns.
        id: the record's id where the data has none.
        max_chars: longest allowed text in characters.
        fixed: counts what was put right in the target, by a short name that the kind of head gives it.
    """
    columns, kind = task.columns, head_kind(task.head)
    text = kind.text(row[columns.text])
    if isinstance(text, RowProblem):
        return text
    pair = None if columns.pair is None else row[columns.pair]
    if kind.pair == "input" and isinstance(pair, str) and not pair.strip():
        pair = None  # an instruction need not come with an input
    checked = {columns.text: text}
    if columns.pair is not None and not (kind.pair == "input" and pair is None):
        checked[columns.pair] = pair
    for column, value in checked.items():
        problem = text_problem(value, max_chars=max_chars)
        if problem is not None:
            return RowProblem(problem[0], f"{column} {problem[1]}")
    target = kind.target(
        NativeRow(
            text=str(text),
            pair=pair,
            target=row[columns.target],
            target_column=columns.target,
            extra={name: row[column] for name, column in columns.extra.items()},
            labels=task.labels,
            max_chars=max_chars,
            repairs=fixed,
        )
    )
    if isinstance(target, RowProblem):
        return target
    native_id = row.get(columns.id) if columns.id else None
    return Record(str(text), pair, task_id, task.name, target, id if native_id in (None, "") else str(native_id))


def native_records(
    task: Task,
    task_id: int,
    rows: Iterable[Row],
    *,
    split: str,
    skip_bad: SkipCount | None = None,
    max_chars: int = MAX_CHARS,
) -> Iterator[Record]:
    """Turn all rows of a split into records, none dropped, none sampled: what scoring reads.

    Raises:
        DataError: a row, named by number, cannot be used, and ``skip_bad`` is not given.
    """
    for number, row in rows:
        record = convert(task, task_id, row, f"{split}-{number}", max_chars=max_chars, fixed=Counter())
        if isinstance(record, Record):
            yield record
        else:
            bad_row(f"task {task.name!r}, split {split!r}, row {number}: {record.message}", skip_bad)
