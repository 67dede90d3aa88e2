"""Where ``predict`` writes answers: lines for people, JSON lines, or a table, by the end of the file's name."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from dynamorouter.utils.files import writing

COLUMNS = (
    "line", "id", "text", "pair", "task", "expert", "confidence", "answer", "answer_score", "route",
    "label_probabilities", "entities", "finish_reason", "prompt_tokens", "completion_tokens",
)  # fmt: skip
"""Of a table of answers; lists and mappings are JSON in their cell, and what an answer has not is empty."""
DELIMITERS = {".csv": ",", ".tsv": "\t"}

Write = Callable[[Mapping[str, Any]], None]
"""Writes one answer, as ``Prediction.to_json`` returns it, with what is known of its row."""


@contextmanager
def answer_file(path: Path | None) -> Iterator[tuple[TextIO, Write]]:
    """Open where answers go: a file that is there whole or not at all, or standard output.

    Args:
        path: ``.csv`` and ``.tsv`` become tables, all others JSON lines, packed where the name ends in ``.gz``;
            ``None`` for standard output.

    Yields:
        The text stream, and what writes an answer to it as the file's name says.
    """
    with ExitStack() as stack:
        stream: TextIO = sys.stdout
        if path is not None:
            temporary = stack.enter_context(writing(path))
            if path.suffix == ".gz":
                stream = stack.enter_context(gzip.open(temporary, "wt", encoding="utf-8", newline=""))
            else:
                stream = stack.enter_context(temporary.open("w", encoding="utf-8", newline=""))
        suffix = "" if path is None else Path(path.name.removesuffix(".gz")).suffix
        yield stream, (_table(stream, DELIMITERS[suffix]) if suffix in DELIMITERS else _json_lines(stream))


def _json_lines(stream: TextIO) -> Write:
    return lambda values: print(json.dumps(values, ensure_ascii=False), file=stream, flush=True)


def _table(stream: TextIO, delimiter: str) -> Write:
    table = csv.DictWriter(stream, COLUMNS, delimiter=delimiter, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    return lambda values: table.writerow({column: _cell(values.get(column)) for column in COLUMNS})


def _cell(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
