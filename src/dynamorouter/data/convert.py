"""From a native row to a record, or to the reason why it cannot be one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from dynamorouter.data.sources import Row
from dynamorouter.errors import DataError, one_of
from dynamorouter.metrics.base import target_problem
from dynamorouter.tasks.kinds import RowProblem, head_kind
from dynamorouter.tasks.kinds.base import NativeRow
from dynamorouter.tasks.labels import is_missing, nearest_label, whole_number
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task
from dynamorouter.tasks.text import MAX_CHARS, text_problem
from dynamorouter.utils.jsonl import SkipCount, bad_row

_MOST_LABELS = 10


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
    if kind.pair == "input" and is_missing(pair):
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
            may_lack_answer=task.null_threshold is not None,
        )
    )
    if isinstance(target, RowProblem):
        return target
    native_id = row.get(columns.id) if columns.id else None
    return Record(str(text), pair, task_id, task.name, target, id if native_id in (None, "") else str(native_id))


def native_records(
    task: Task,
    rows: Iterable[Row],
    *,
    where: str,
    id_prefix: str,
    skip_bad: SkipCount | None = None,
    limit: int | None = None,
) -> list[Record]:
    """Turn rows into records, none dropped, none sampled: what scoring and adding experts read.

    Args:
        task: whose rows they are.
        rows: numbered, in the task's columns.
        where: what they are, for messages, such as ``"task 'sst2', split 'test'"``.
        id_prefix: of the ids of rows that have none; their number follows.
        skip_bad: where given, rows that cannot be used are counted in it and left out.
        limit: most records, from the top.

    Raises:
        DataError: rows cannot be used; they are named by number, or, for labels that are none of the task's, counted.
    """
    records: list[Record] = []
    unknown, unlabelled, read = Counter[str](), list[int](), 0
    for number, row in rows:
        if limit is not None and len(records) >= limit:
            break
        read += 1
        record = convert(task, 0, row, f"{id_prefix}-{number}", fixed=Counter())
        if isinstance(record, Record) and (problem := target_problem(task, record.target)) is not None:
            record = RowProblem("cannot_be_scored", problem)
        if isinstance(record, Record):
            records.append(record)
        elif record.unknown and skip_bad is None:
            unknown.update(record.unknown)
            unlabelled.append(number)
        else:
            bad_row(f"{where}, row {number}: {record.message}", skip_bad)
    if unknown:
        message = labels_message(task, unknown, rows=len(unlabelled), read=read)
        raise DataError(f"{where}, row {unlabelled[0]}: {message}; --skip-bad counts such rows and leaves them out")
    return records


def labels_message(task: Task, unknown: Counter[str], *, rows: int, read: int) -> str:
    """Return a sentence on labels that are none of the task's: how often each stands, what it may mean, the remedy.

    Args:
        task: whose labels they should be.
        unknown: in how many rows each stands.
        rows: how many rows have such labels.
        read: of how many.
    """
    named = []
    for label, count in unknown.most_common(_MOST_LABELS):
        near = nearest_label(label, task.labels)
        named.append(f"{label!r} in {count} rows" + (f" (did you mean {near!r}?)" if near else ""))
    if len(unknown) > _MOST_LABELS:
        named.append(f"{len(unknown) - _MOST_LABELS} more")
    remedy = "correct them, or say in `label_map` of the task's source which label each one is"
    if all(whole_number(label) is not None for label in unknown):
        remedy = "list the names of numbered labels, in their order, as `label_names` of the task's source"
    return (
        f"{rows} of {read} rows have a label that is none of the task's: {', '.join(named)}; "
        f"allowed: {one_of(task.labels)}; {remedy}"
    )
