"""The data written for this project, which is always there."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator

import dynamorouter.data.builtin as builtin
from dynamorouter.data.sources import Options, Row, Source, source_split, sources
from dynamorouter.errors import DataError, one_of
from dynamorouter.tasks.task import Task
from dynamorouter.utils.jsonl import SkipCount, read_jsonl


@sources.register("builtin")
class BuiltinSource(Source):
    """Reads the task's files of ``dynamorouter.data.builtin``; option ``module`` names another task's."""

    def splits(self, task: Task, options: Options) -> list[str]:
        """Return the splits that every task has."""
        _name(task, options)
        return list(builtin.SPLITS)

    def rows(self, task: Task, split: str, options: Options, *, skip_bad: SkipCount | None) -> Iterator[Row]:
        """Yield the rows of a split, numbered from 1.

        Raises:
            DataError: there is no built-in data for the task, or no such split.
        """
        builtin_split = source_split(split, options)
        if builtin_split not in builtin.SPLITS:
            raise DataError(f"built-in data has no split {builtin_split!r}; allowed: {one_of(builtin.SPLITS)}")
        yield from read_jsonl(builtin.rows_path(_name(task, options), builtin_split), skip_bad=skip_bad)

    def fingerprint(self, task: Task, options: Options) -> str:
        """Return a hash of the task's rows, whatever compressed them."""
        digest = hashlib.sha256()
        for split in builtin.SPLITS:
            digest.update(gzip.decompress(builtin.rows_path(_name(task, options), split).read_bytes()))
        return digest.hexdigest()


def _name(task: Task, options: Options) -> str:
    """Return the name that the task's rows are filed under."""
    name = str(options.get("module") or task.name)
    if name not in builtin.names():
        raise DataError(
            f"there is no built-in data for task {task.name!r}, only for {one_of(builtin.names())}; "
            "use data=local data.root=FOLDER or data=hub"
        )
    return name
