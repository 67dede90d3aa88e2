"""Rows at hand in a program, as records: a ``datasets.Dataset``, a table, plain mappings, or records themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dynamorouter.data.convert import native_records
from dynamorouter.data.sources import Options, Row, in_task_columns, missing_columns
from dynamorouter.data.sources.hub import named_rows
from dynamorouter.errors import DataError
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task


def as_records(rows: Iterable[Any], task: Task, *, where: str) -> list[Record]:
    """Turn rows of a task into records, every one of them or none.

    Args:
        rows: a ``datasets.Dataset``, whose integer labels become the names that it declares for them; a data frame;
            mappings by the task's own columns, or by those that one of the task's sources renames to them; or records.
        task: whose rows they are.
        where: what the rows are, for messages, such as ``"rows of task 'sst2'"``.

    Returns:
        The records, in order, with ``task_id`` 0 unless they had one.

    Raises:
        DataError: a row, named by number from 1, cannot be used, or there are none.
    """
    if isinstance(rows, (str, bytes, Mapping)):
        raise DataError(
            f"{where}: got one {type(rows).__name__}, not rows; give a datasets.Dataset, a data frame, or a list of "
            "mappings such as [{'text': ..., 'label': ...}]; of a DatasetDict, give one split"
        )
    plain = list(_plain(rows, where))
    if not plain:
        raise DataError(f"{where}: there are none; give at least one row")
    if all(isinstance(row, Record) for row in plain):
        return [_checked(record, task, f"{where}, row {number}") for number, record in enumerate(plain, start=1)]
    return native_records(task, _in_task_columns(plain, task, where), where=where, id_prefix="row")


def _in_task_columns(rows: Sequence[Any], task: Task, where: str) -> Iterator[Row]:
    """Yield mappings by the task's own columns, numbered from 1."""
    options: Options | None = None
    for number, row in enumerate(rows, start=1):
        which = f"{where}, row {number}"
        if not isinstance(row, Mapping):
            remedy = "give mappings, or records alone"
            raise DataError(f"{which}: got {type(row).__name__} {str(row)[:40]!r}; {remedy}")
        options = _renames(task, row, which) if options is None else options
        if missing := missing_columns(task, row, options):
            raise DataError(_lacking(task, row, missing, which))
        yield number, in_task_columns(task, row, options)


def _plain(rows: Iterable[Any], where: str) -> Iterable[Any]:
    """Return what gives the rows one by one, whatever holds them."""
    if hasattr(rows, "features") and hasattr(rows, "column_names"):
        return named_rows(rows)
    for method, arguments in (("to_pylist", ()), ("to_dicts", ()), ("to_dict", ("records",))):
        rows_of_table = getattr(rows, method, None)
        if hasattr(rows, "columns") and callable(rows_of_table):  # of pyarrow, polars, pandas
            table: list[dict[str, Any]] = rows_of_table(*arguments)
            return table
    if not isinstance(rows, Iterable):
        raise DataError(f"{where}: got {type(rows).__name__}; give a datasets.Dataset, a data frame, or a list of rows")
    return rows


def _renames(task: Task, row: Mapping[str, Any], which: str) -> Options:
    """Return the options under which a row has all columns: those of the task's first source that fits, or none."""
    for options in (task.sources.get("local", {}), *task.sources.values(), {}):
        if not missing_columns(task, row, options):
            return options
    raise DataError(_lacking(task, row, missing_columns(task, row, {}), which))


def _lacking(task: Task, row: Mapping[str, Any], missing: list[str], which: str) -> str:
    return (
        f"{which}: column {', '.join(missing)} missing; found {', '.join(map(str, row)) or 'none'}; task {task.name!r} "
        f"needs {', '.join(task.columns.needed())}; rename the columns, or name them in the task's `columns`"
    )


def _checked(record: Record, task: Task, which: str) -> Record:
    if record.task_name != task.name:
        raise DataError(f"{which}: a record of task {record.task_name!r}, not of {task.name!r}; give this task's own")
    return record
