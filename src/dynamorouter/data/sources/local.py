"""Files on this machine: ``root/<task>/<split>.{jsonl,json,csv,tsv,parquet}`` in the task's native columns."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from dynamorouter.data.sources import SPLITS, Options, Row, Source, source_split, sources
from dynamorouter.errors import ConfigError, DataError, MissingExtraError
from dynamorouter.tasks.task import Task
from dynamorouter.utils.files import file_sha256
from dynamorouter.utils.jsonl import SkipCount, bad_row, read_jsonl

_ALIASES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


@sources.register("local")
class LocalSource(Source):
    """Reads a folder per task.

    Options: ``root`` (the folder of the tasks' folders), ``folder`` (the task's own, its name by default), ``quote``
    (false where quotation marks of CSV and TSV files are ordinary characters).
    """

    def splits(self, task: Task, options: Options) -> list[str]:
        """Return the splits that a file is found for."""
        folder = _folder(task, options)
        return [split for split in SPLITS if _find(folder, split, options) is not None]

    def rows(self, task: Task, split: str, options: Options, *, skip_bad: SkipCount | None) -> Iterator[Row]:
        """Yield the rows of a file, numbered by line where it has lines.

        Raises:
            DataError: there is no such file, or a row of it, named by number, is broken.
        """
        folder = _folder(task, options)
        path = _find(folder, split, options)
        if path is None:
            files = ", ".join(sorted(item.name for item in folder.iterdir())) or "nothing"
            raise DataError(
                f"task {task.name!r} has no split {split!r} in {folder}: found {files}; "
                f"put the rows in {split}.jsonl (or {', '.join(sorted(_READERS))})"
            )
        try:
            yield from _READERS[path.suffix](path, options, skip_bad)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not valid UTF-8 at byte {error.start}; save it as UTF-8") from error

    def fingerprint(self, task: Task, options: Options) -> str:
        """Return a hash of the files' contents."""
        folder = _folder(task, options)
        digest = hashlib.sha256()
        for split in SPLITS:
            path = _find(folder, split, options)
            if path is not None:
                digest.update(f"{path.name}:{file_sha256(path)}\n".encode())
        return digest.hexdigest()


def has_split(task: Task, split: str, options: Options) -> bool:
    """Tell whether there is a file for a split of a task.

    Raises:
        DataError: there is more than one.
    """
    folder = Path(str(options["root"])) / str(options.get("folder") or task.name)
    return _find(folder, split, options) is not None


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


def _find(folder: Path, split: str, options: Options) -> Path | None:
    stem_of_split = source_split(split, options)
    stems = _ALIASES[split] if stem_of_split == split and split in _ALIASES else (stem_of_split,)
    paths = [path for stem in stems for suffix in _READERS if (path := folder / f"{stem}{suffix}").is_file()]
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise DataError(f"{folder} has more than one file for split {split!r}: {names}; keep one of them")
    return paths[0] if paths else None


def _jsonl(path: Path, options: Options, skip_bad: SkipCount | None) -> Iterator[Row]:
    yield from read_jsonl(path, skip_bad=skip_bad)


def _json(path: Path, options: Options, skip_bad: SkipCount | None) -> Iterator[Row]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); one object per line goes into a .jsonl file") from error
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise DataError(f'{path} holds no list of rows; write [{{...}}, ...] or {{"data": [{{...}}, ...]}}')
    for number, row in enumerate(rows, start=1):
        if isinstance(row, dict):
            yield number, row
        else:
            bad_row(f"{path}, row {number}: a JSON {type(row).__name__}, not an object", skip_bad)


def _table(delimiter: str) -> Callable[[Path, Options, SkipCount | None], Iterator[Row]]:
    """Return a reader of CSV-like files whose first line names the columns."""

    def read(path: Path, options: Options, skip_bad: SkipCount | None) -> Iterator[Row]:
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if options.get("quote", True) else csv.QUOTE_NONE
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle, delimiter=delimiter, quoting=quoting, strict=True)
            header: list[str] | None = None
            while True:
                try:
                    cells = next(reader, None)
                except csv.Error as error:
                    bad_row(f"{path}, line {reader.line_num}: {error}", skip_bad)
                    continue
                if cells is None:
                    return
                if header is None:
                    header = cells
                elif cells and len(cells) != len(header):
                    bad_row(f"{path}, line {reader.line_num}: {len(cells)} cells under {len(header)} columns", skip_bad)
                elif cells:
                    yield reader.line_num, dict(zip(header, cells, strict=True))

    return read


def _parquet(path: Path, options: Options, skip_bad: SkipCount | None) -> Iterator[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError(f"reading {path} needs pyarrow; install it with `pip install pyarrow`") from error
    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches():
            rows: list[dict[str, Any]] = batch.to_pylist()
            for row in rows:
                number += 1
                yield number, row
    except pa.ArrowException as error:
        raise DataError(f"{path}, after row {number}: damaged Parquet ({error}); write the file again") from error


_READERS: dict[str, Callable[[Path, Options, SkipCount | None], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".parquet": _parquet,
}
