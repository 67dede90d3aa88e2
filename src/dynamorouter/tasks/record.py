"""The unified record: one example of one task, and its JSONL form.

``text`` and ``pair`` are what a router may read; ``target`` is what it may not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamorouter.errors import DataError
from dynamorouter.tasks.text import MAX_CHARS, check_text
from dynamorouter.utils.jsonl import SkipCount, bad_row, read_jsonl, write_atomic

__all__ = ["MAX_CHARS", "Record", "SkipCount", "Target", "check_text", "read_jsonl", "read_records", "write_records"]

Target = str | list[str] | dict[str, list[Any]]
"""A label; one tag per whitespace-separated word of the text; ``{"texts": [...], "starts": [...]}``; or, for a text to
be written, ``{"texts": [...]}`` with what only a metric reads beside it, such as ``"tests": [...]``."""


@dataclass(frozen=True, slots=True)
class Record:
    """One example in the unified form.

    Attributes:
        text: the single text, the first of a pair, the question, or the words joined by single spaces.
        pair: the second text, or the context that a question is about; ``None`` for single texts.
        task_id: position of the task in the system's list of tasks.
        task_name: name of the task.
        target: label, tags, or answers, by the task's head (see ``Target``).
        id: unique within the task and stable between runs.
    """

    text: str
    pair: str | None
    task_id: int
    task_name: str
    target: Target
    id: str

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values; lists in the target are the record's own."""
        return {key: getattr(self, key) for key in _TYPES}

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Record:
        """Build a record from plain JSON values.

        Raises:
            DataError: a key is missing, or a value is of the wrong type; all of them are named.
        """
        missing = [key for key in _TYPES if key not in row]
        if missing:
            raise DataError(f"missing {', '.join(missing)}; a record has {', '.join(_TYPES)}")
        wrong = [
            f"{key} is {type(row[key]).__name__}"
            for key, types in _TYPES.items()
            if not isinstance(row[key], types) or isinstance(row[key], bool)
        ]
        if wrong:
            raise DataError(f"wrong types: {', '.join(wrong)}; write the file with `dynamorouter prepare`")
        return Record(**{key: row[key] for key in _TYPES})


_TYPES: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "pair": (str, type(None)),
    "task_id": (int,),
    "task_name": (str,),
    "target": (str, list, dict),
    "id": (str,),
}


def read_records(path: str | Path, *, skip_bad: SkipCount | None = None) -> Iterator[Record]:
    """Read unified records one at a time.

    Args:
        path: a JSONL file as ``write_records`` writes it.
        skip_bad: where given, broken lines are counted in it and left out.

    Raises:
        DataError: the file cannot be read, or a line, named by number, is no record.
    """
    for number, row in read_jsonl(path, skip_bad=skip_bad):
        try:
            record = Record.from_json(row)
        except DataError as error:
            bad_row(f"{path}, line {number}: {error}", skip_bad)
            continue
        yield record


def write_records(path: str | Path, records: Iterable[Record]) -> str:
    """Write records as JSONL, whole or not at all, and return the file's SHA-256.

    Raises:
        DataError: the folder cannot be written to, or the disk is full.
    """
    return write_atomic(path, (json.dumps(record.to_json(), ensure_ascii=False) for record in records))
