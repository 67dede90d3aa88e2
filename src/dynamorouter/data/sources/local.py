"""Files on this machine: ``root/<task>/<split>`` with the suffix of any format, in the task's native columns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from dynamorouter.data.formats import OVER_LINES, read_rows_file, rows_over_lines, suffixes
from dynamorouter.data.sources import SPLITS, Options, Row, Source, source_split, sources
from dynamorouter.errors import ConfigError, DataError, one_of
from dynamorouter.tasks.task import Task
from dynamorouter.utils.files import file_sha256
from dynamorouter.utils.jsonl import SkipCount

_ALIASES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


@sources.register("local")
class LocalSource(Source):
    """Reads a folder per task.

    Options: ``root`` (the folder of the tasks' folders), ``folder`` (the task's own, its name by default), ``quote``
    (``none`` where quotation marks of CSV and TSV files are ordinary characters, ``double`` where they stand around
    cells), ``token_column`` and ``tag_column`` (of CoNLL files, from 0).
    """

    def splits(self, task: Task, options: Options) -> list[str]:
        """Return the splits that a file is found for."""
        folder = _folder(task, options)
        return [split for split in SPLITS if _find(folder, task, split, options) is not None]

    def rows(self, task: Task, split: str, options: Options, *, skip_bad: SkipCount | None) -> Iterator[Row]:
        """Yield the rows of a file, numbered by line where it has lines.

        Raises:
            DataError: there is no such file, or a row of it, named by number, is broken.
        """
        folder = _folder(task, options)
        path = _find(folder, task, split, options)
        if path is None:
            files = ", ".join(sorted(item.name for item in folder.iterdir())) or "nothing"
            raise DataError(
                f"task {task.name!r} has no split {split!r} in {folder}: found {files}; "
                f"put the rows in {split}.jsonl (or {one_of(suffixes(task))})"
            )
        yield from read_rows_file(path, task, options, skip_bad=skip_bad)

    def remarks(self, task: Task, split: str, options: Options) -> dict[str, int]:
        """Return how many rows of a table go over several lines, since a stray quotation mark may have joined them."""
        path = _find(_folder(task, options), task, split, options)
        long_rows = 0 if path is None else rows_over_lines(path, options)
        return {OVER_LINES: long_rows} if long_rows else {}

    def fingerprint(self, task: Task, options: Options) -> str:
        """Return a hash of the files' contents."""
        folder = _folder(task, options)
        digest = hashlib.sha256()
        for split in SPLITS:
            path = _find(folder, task, split, options)
            if path is not None:
                digest.update(f"{path.name}:{file_sha256(path)}\n".encode())
        return digest.hexdigest()


def has_split(task: Task, split: str, options: Options) -> bool:
    """Tell whether there is a file for a split of a task.

    Raises:
        DataError: there is more than one.
    """
    folder = Path(str(options["root"])) / str(options.get("folder") or task.name)
    return _find(folder, task, split, options) is not None


def _folder(task: Task, options: Options) -> Path:
    root = options.get("root")
    if not root:
        raise ConfigError("source 'local' needs the folder that holds the tasks' folders; set data.root=FOLDER")
    folder = Path(str(root)) / str(options.get("folder") or task.name)
    if not folder.is_dir():
        raise DataError(
            f"task {task.name!r}: no folder {folder}; put train.jsonl there, or set data.root to its parent"
        )
    return folder


def _find(folder: Path, task: Task, split: str, options: Options) -> Path | None:
    stem_of_split = source_split(split, options)
    stems = _ALIASES[split] if stem_of_split == split and split in _ALIASES else (stem_of_split,)
    paths = [path for stem in stems for suffix in suffixes(task) if (path := folder / f"{stem}{suffix}").is_file()]
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise DataError(f"{folder} has more than one file for split {split!r}: {names}; keep one of them")
    return paths[0] if paths else None
