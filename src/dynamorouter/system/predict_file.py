"""Predictions for a file of texts, read and answered a chunk at a time so that a file of any length fits in memory.

A row's text and pair stand under ``text`` and ``pair``, ``question`` and ``context``, or the columns of a task.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from dynamorouter.data.formats import READERS, read_rows_file, suffixes
from dynamorouter.errors import DataError, suggest
from dynamorouter.tasks.chat import conversation, exchange
from dynamorouter.tasks.kinds import RowProblem, head_kind
from dynamorouter.tasks.task import Task
from dynamorouter.utils.jsonl import SkipCount, bad_row, read_jsonl

ALIASES = {"text": "text", "question": "text", "pair": "pair", "context": "pair"}
"""Keys that a row's text and pair may stand under, whatever the task."""


class Predicted(Protocol):
    """What a system answers for one row."""

    def to_json(self) -> dict[str, Any]:
        """Return the answer as plain JSON values."""


class Predictor(Protocol):
    """The part of a system that answers texts."""

    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str | None] | None = None,
        tasks: Sequence[str | None] | None = None,
    ) -> Sequence[Predicted]:
        """Answer each text, or text and pair, through the expert of ``tasks`` or the one that is routed to."""


Answering = Callable[..., Sequence[Predicted]]
"""``Predictor.predict``, with further arguments of its own."""
Numbered = Iterator[tuple[int, dict[str, Any]]]
"""Rows with their numbers."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the file.

    Attributes:
        number: its line, from 1.
        text: the text, or the question.
        pair: the second text or the context.
        id: the row's own ``id``, if it has one.
    """

    number: int
    text: str
    pair: str | None
    id: str | int | None


def predict_lines(
    system: Predictor,
    path: str | Path,
    *,
    task: str | None = None,
    tasks: Sequence[Task] = (),
    skip_bad: SkipCount | None = None,
    asked: Mapping[str, Any] | None = None,
    chunk: int = 64,
) -> Iterator[tuple[Row, Predicted]]:
    """Yield each row of a file with its prediction, in order.

    Args:
        system: answers the rows.
        path: a file that is read by the end of its name as training data are, as JSON lines where that says nothing;
            columns that hold neither text nor pair are passed over.
        task: the task of all rows; ``None`` routes each.
        tasks: those whose columns a row may have.
        skip_bad: where given, broken rows are counted in it and left out.
        asked: further arguments of ``predict``, such as ``abstain_below`` or ``generation``.
        chunk: rows that are answered together.

    Raises:
        DataError: a row, named by its line, cannot be read or answered.
    """
    predict: Answering = system.predict
    rows = _rows(Path(path), tasks, skip_bad)
    while batch := list(islice(rows, chunk)):
        yield from _answer(partial(predict, **(asked or {})), batch, task, skip_bad, Path(path))


@contextmanager
def spooled(stream: BinaryIO, suffix: str) -> Iterator[Path]:
    """Keep what a stream holds in a file for the time of a ``with`` block, for readers that need a whole file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"standard-input{suffix}"
        with path.open("wb") as file:
            shutil.copyfileobj(stream, file)
        yield path


def _answer(
    predict: Answering,
    batch: Sequence[Row],
    task: str | None,
    skip_bad: SkipCount | None,
    path: Path,
) -> Iterator[tuple[Row, Predicted]]:
    """Answer a chunk; if it fails, answer its rows one by one to find the line at fault."""
    try:
        tasks = None if task is None else [task] * len(batch)
        answers = predict([row.text for row in batch], [row.pair for row in batch], tasks)
    except DataError as error:
        if len(batch) == 1:
            bad_row(f"{path}, line {batch[0].number}: {error}", skip_bad)
            return
        for row in batch:
            yield from _answer(predict, [row], task, skip_bad, path)
        return
    yield from zip(batch, answers, strict=True)


def _rows(path: Path, tasks: Sequence[Task], skip_bad: SkipCount | None) -> Iterator[Row]:
    for number, values in _numbered(path, tasks, skip_bad):
        row = _row(number, values, tasks)
        if isinstance(row, Row):
            yield row
        else:
            bad_row(f"{path}, line {number}: {row}", skip_bad)


def _numbered(path: Path, tasks: Sequence[Task], skip_bad: SkipCount | None) -> Numbered:
    """Read a file of a known kind, or JSON lines one at a time, from a pipe too."""
    suffix = Path(path.name.removesuffix(".gz")).suffix
    options: Mapping[str, Any] = next((local for task in tasks if (local := task.sources.get("local"))), {})
    if suffix in READERS and suffix != ".jsonl":
        return read_rows_file(path, options=options, skip_bad=skip_bad)
    tagging = next((task for task in tasks if suffix in suffixes(task)), None)
    if suffix == ".conll" and tagging is not None:  # a .txt may hold anything else
        return read_rows_file(path, tagging, tagging.sources.get("local"), skip_bad=skip_bad)
    return read_jsonl(path, skip_bad=skip_bad)


def _row(number: int, values: Mapping[str, Any], tasks: Sequence[Task]) -> Row | str:
    """Return the row, or a sentence saying what is wrong with it."""
    task = _task_of(values, tasks)
    turns = conversation(values) if task is None else None
    if turns is not None:
        told = exchange(turns)
        return told if isinstance(told, str) else Row(number, told.text, None, _id_of(values))
    fields = _common_fields(values) if task is None else _task_fields(values, task)
    if isinstance(fields, str):
        return fields
    if fields.get("text") is None:
        names = ["text", "question", *(task.columns.text for task in tasks)]
        near = next((s for key in values if (s := suggest(key, names))), "")
        return f"has no 'text'{near}; its keys: {', '.join(sorted(values)) or 'none'}"
    return Row(number, fields["text"], fields.get("pair"), _id_of(values))


def _id_of(values: Mapping[str, Any]) -> str | int | None:
    row_id = values.get("id")
    return row_id if isinstance(row_id, (str, int)) else None


def _task_of(values: Mapping[str, Any], tasks: Sequence[Task]) -> Task | None:
    """Return the task that most of a row's columns are of; ``None`` where they are those that any row may have."""

    def held(task: Task) -> int:
        needed = [column for column in (task.columns.text, task.columns.pair) if column is not None]
        return len(needed) if all(values.get(column) is not None for column in needed) else 0

    best = max(tasks, key=held, default=None)
    common = sum(values.get(key) is not None for key in ALIASES)
    return best if best is not None and held(best) > common else None


def _common_fields(values: Mapping[str, Any]) -> dict[str, str] | str:
    fields: dict[str, str] = {}
    for key, name in ALIASES.items():
        value = values.get(key)
        if value is None or (name == "pair" and value == ""):
            continue
        if name in fields:
            return f"holds {name!r} twice, once as {key!r}; keep one"
        if not isinstance(value, str):
            return f"{key!r} is a {type(value).__name__}; give a string"
        fields[name] = value
    return fields


def _task_fields(values: Mapping[str, Any], task: Task) -> dict[str, str] | str:
    """Return text and pair from a task's own columns, as its rows are read for training."""
    text = head_kind(task.head).text(values[task.columns.text])
    if isinstance(text, RowProblem):
        return text.message
    pair = None if task.columns.pair is None else values.get(task.columns.pair)
    wrong = {task.columns.text: text, **({} if pair is None else {task.columns.pair: pair})}
    for column, value in wrong.items():
        if not isinstance(value, str):
            return f"{column!r} is a {type(value).__name__}; give a string"
    return {"text": str(text), **({} if not pair else {"pair": str(pair)})}
