"""JSON lines read one at a time with numbered errors, and files written whole or not at all."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynamorouter.errors import DataError
from dynamorouter.utils.files import writing

_MOST_MESSAGES = 20


@dataclass(slots=True)
class SkipCount:
    """Counts the rows that were left out because they were bad.

    Attributes:
        count: how many.
        messages: what was wrong with the first 20 of them.
    """

    count: int = 0
    messages: list[str] = field(default_factory=list)

    def add(self, message: str) -> None:
        """Count one more bad row."""
        self.count += 1
        if len(self.messages) < _MOST_MESSAGES:
            self.messages.append(message)


def bad_row(message: str, skip_bad: SkipCount | None) -> None:
    """Count a bad row where a counter is given.

    Raises:
        DataError: no counter is given; the message says how to go on.
    """
    if skip_bad is None:
        raise DataError(
            f"{message}; correct it, or leave bad rows out and count them (--skip-bad of run, prepare, score, predict)"
        )
    skip_bad.add(message)


def read_jsonl(path: str | Path, *, skip_bad: SkipCount | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a file of JSON objects, one per line, holding one line in memory.

    Args:
        path: the file, UTF-8, compressed where its name ends in ``.gz``; blank lines are passed over.
        skip_bad: where given, broken lines are counted in it and left out.

    Yields:
        The line's number, from 1, and its object.

    Raises:
        DataError: the file cannot be read or unpacked; or a line, named by number, is not UTF-8 or not a JSON object.
    """
    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for number, raw in enumerate(lines, start=1):
                if not raw.strip():
                    continue
                row = _parse(raw, number)
                if isinstance(row, dict):
                    yield number, row
                else:
                    bad_row(f"{path}, line {number}: {row}", skip_bad)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is no whole gzip file ({error}); fetch it again, or install dynamorouter again where it is its own"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; check the path and its permissions") from error


def read_appended(path: Path, *, start: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Read a file that JSON objects are appended to, one per line, from byte ``start`` on.

    A file that is not there has no lines, and a last line without its end, which a killed process was writing, is none.

    Yields:
        The object of a line, and where the line ends, in bytes from the file's beginning.

    Raises:
        DataError: a line, named by number, is damaged.
    """
    if not path.is_file():
        return
    with path.open("rb") as lines:
        before, end = lines.read(start).count(b"\n"), start
        for number, raw in enumerate(lines, start=before + 1):
            if not raw.endswith(b"\n"):
                return
            row = _parse(raw, number)
            if not isinstance(row, dict):
                raise DataError(
                    f"{path}, line {number}: {row}; it is damaged: remove the line and resume, and it is made again"
                )
            end += len(raw)
            yield row, end


def _parse(raw: bytes, number: int) -> dict[str, Any] | str:
    """Return the object of a line, or a sentence saying what is wrong with it."""
    try:
        value = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        return f"byte {error.start} (0x{raw[error.start]:02x}) is not valid UTF-8; save the file as UTF-8"
    except (ValueError, RecursionError) as error:
        return f"not valid JSON ({error})"
    if not isinstance(value, dict):
        return f"holds a JSON {type(value).__name__}, not an object like {{...}}"
    return value


def write_atomic(path: str | Path, lines: Iterable[str]) -> str:
    """Write lines to a file that is there complete or, after any failure, as it was before.

    Args:
        path: where to; its folder is made.
        lines: text without line ends.

    Returns:
        The SHA-256 of the file in hexadecimal.

    Raises:
        DataError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    digest = hashlib.sha256()
    try:
        with writing(path) as temporary, temporary.open("wb") as out:
            for line in lines:
                data = f"{line}\n".encode()
                digest.update(data)
                out.write(data)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot write {path}: {reason}; free space or choose a folder you may write to") from error
    return digest.hexdigest()
