"""The data written for this project, which is always there."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import dynamorouter.data.builtin as builtin
from dynamorouter.data.jsonl import SkipCount
from dynamorouter.data.sources import Options, Row, Source, source_split, sources
from dynamorouter.data.spec import TaskSpec
from dynamorouter.errors import DataError, one_of


@sources.register("builtin")
class BuiltinSource(Source):
    """Imports the task's module of ``dynamorouter.data.builtin``; option ``module`` names another one."""

    def splits(self, task: TaskSpec, options: Options) -> list[str]:
        """Return the splits that every module has."""
        _module(task, options)
        return list(builtin.SPLITS)

    def rows(self, task: TaskSpec, split: str, options: Options, *, skip_bad: SkipCount | None) -> Iterator[Row]:
        """Yield the rows of a split, numbered from 1.

        Raises:
            DataError: there is no built-in data for the task, or no such split.
        """
        own = source_split(split, options)
        if own not in builtin.SPLITS:
            raise DataError(f"built-in data has no split {own!r}; allowed: {one_of(builtin.SPLITS)}")
        yield from enumerate(map(dict, _module(task, options).rows(own)), start=1)

    def fingerprint(self, task: TaskSpec, options: Options) -> str:
        """Return a hash of all files of the built-in data, as modules may share helpers."""
        _module(task, options)
        digest = hashlib.sha256()
        for folder in builtin.__path__:
            for path in sorted(item for item in Path(folder).iterdir() if item.is_file()):
                digest.update(path.read_bytes())
        return digest.hexdigest()


def _module(task: TaskSpec, options: Options) -> ModuleType:
    name = str(options.get("module") or task.name)
    if name not in builtin.names():
        raise DataError(
            f"there is no built-in data for task {task.name!r}, only for {one_of(builtin.names())}; "
            "use data=local data.root=FOLDER or data=hub"
        )
    return importlib.import_module(f"{builtin.__name__}.{name}")
