"""One reader for every file of rows: JSON lines, JSON, CSV, TSV, Parquet, CoNLL columns, each packed by gzip or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dynamorouter.data.formats.conll import read_columns
from dynamorouter.data.formats.packed import packed_suffix, reading
from dynamorouter.data.formats.parquet import read_parquet
from dynamorouter.data.formats.tables import count_long_rows, read_table
from dynamorouter.data.formats.trees import read_trees
from dynamorouter.errors import DataError, one_of
from dynamorouter.tasks.kinds import head_kind
from dynamorouter.tasks.task import Task
from dynamorouter.utils.jsonl import SkipCount

Row = tuple[int, dict[str, Any]]
"""The number of a row in its file, from 1, and its columns."""
Reader = Callable[[Path, Mapping[str, Any], SkipCount | None], Iterator[Row]]

READERS: dict[str, Reader] = {
    ".jsonl": read_trees,
    ".json": read_trees,
    ".csv": read_table,
    ".tsv": read_table,
    ".parquet": read_parquet,
}
TAG_SUFFIXES = (".conll", ".txt")
"""Of files in columns, for tasks that tag words."""


OVER_LINES = "rows_over_several_lines"
"""What ``rows_over_lines`` is counted under."""


def rows_over_lines(path: Path, options: Mapping[str, Any]) -> int:
    """Return how many rows of a table go over several lines of its file; 0 for files of other kinds."""
    with reading(path):
        return (
            count_long_rows(path, options) if READERS.get(packed_suffix(path).removesuffix(".gz")) is read_table else 0
        )


def suffixes(task: Task | None = None) -> list[str]:
    """Return what names of files with rows of a task end in, in the order in which they are looked for."""
    plain = [*READERS, *(TAG_SUFFIXES if task is not None and head_kind(task.head).classes == "word" else ())]
    return [*plain, *(f"{suffix}.gz" for suffix in plain)]


def read_rows_file(
    path: Path,
    task: Task | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    skip_bad: SkipCount | None = None,
) -> Iterator[Row]:
    """Yield the rows of a file, by the end of its name, as they are.

    Args:
        path: the file.
        task: whose rows they are; columns of words and tags get its names.
        options: ``quote`` of tables, ``token_column`` and ``tag_column`` of CoNLL files; see the readers.
        skip_bad: where given, broken rows are counted in it and left out.

    Yields:
        The line of a row where the file has lines, else its number, from 1; and its columns.

    Raises:
        DataError: the file cannot be read, is of no known kind, or a row, named by number, is broken.
        MissingExtraError: reading it needs a package that is not installed.
    """
    suffix = packed_suffix(path)
    if suffix not in suffixes(task):
        raise DataError(f"{path} is no file of rows that can be read by its name; allowed: {one_of(suffixes(task))}")
    with reading(path):
        if task is not None and suffix.removesuffix(".gz") in TAG_SUFFIXES:
            yield from read_columns(path, task, options or {}, skip_bad)
        else:
            yield from READERS[suffix.removesuffix(".gz")](path, options or {}, skip_bad)
