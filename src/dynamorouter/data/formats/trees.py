"""Rows of JSON: one object per line, a list of objects, or SQuAD's articles, paragraphs and questions."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dynamorouter.data.formats.packed import open_bytes, packed_suffix, read_bytes
from dynamorouter.errors import DataError
from dynamorouter.utils.jsonl import SkipCount, bad_row, read_jsonl

_Row = tuple[int, dict[str, Any]]


def read_trees(path: Path, options: Mapping[str, Any], skip_bad: SkipCount | None) -> Iterator[_Row]:
    """Yield the rows, numbered by line or by their place in the list; SQuAD's questions are numbered from 1.

    Which it is, lines or one list, is told by what the file holds and not by its name.
    """
    rows = read_jsonl(path, skip_bad=skip_bad) if _has_lines(path) else _listed(path, skip_bad)
    yield from _questions(path, rows, skip_bad)


def _has_lines(path: Path) -> bool:
    """Tell whether there is an object on each line; a list, or one object over several lines, is read as a whole."""
    with open_bytes(path) as lines:
        written = (line for line in lines if line.strip())
        first, second = next(written, b"").removeprefix(codecs.BOM_UTF8), next(written, b"")
    if first.lstrip().startswith(b"["):
        return False
    if packed_suffix(path).startswith(".jsonl"):
        return True
    try:
        only = json.loads(first)
    except (ValueError, RecursionError):
        return second.lstrip().startswith(b"{")
    return isinstance(only, dict) and (bool(second) or "data" not in only)


def _listed(path: Path, skip_bad: SkipCount | None) -> Iterator[_Row]:
    try:
        value = json.loads(read_bytes(path).decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); one object per line goes into a .jsonl file") from error
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        keys = f" but {', '.join(map(repr, value))}" if isinstance(value, dict) else ""
        raise DataError(f'{path} holds no list of rows{keys}; write [{{...}}, ...] or {{"data": [{{...}}, ...]}}')
    for number, row in enumerate(rows, start=1):
        if isinstance(row, dict):
            yield number, row
        else:
            bad_row(f"{path}, row {number}: a JSON {type(row).__name__}, not an object", skip_bad)


def _questions(path: Path, rows: Iterable[_Row], skip_bad: SkipCount | None) -> Iterator[_Row]:
    """Take SQuAD's articles apart into questions, each with its context; rows of any other form stay as they are."""
    count = 0
    for number, row in rows:
        paragraphs = row.get("paragraphs", [row] if "qas" in row else None)
        if paragraphs is None:
            yield number, row
            continue
        try:
            title = {"title": row["title"]} if "title" in row else {}
            questions = [
                {**title, **question, "context": paragraph["context"]}
                for paragraph in paragraphs
                for question in paragraph["qas"]
            ]
        except (TypeError, KeyError, AttributeError) as error:
            bad_row(
                f"{path}, article {number}: not in SQuAD's form, paragraphs[].qas[] with a context "
                f"({type(error).__name__}: {error})",
                skip_bad,
            )
            continue
        for question in questions:
            count += 1
            yield count, question
