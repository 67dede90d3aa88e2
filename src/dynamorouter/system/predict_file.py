"""Predictions for a file of texts, read and answered a chunk at a time so that a file of any length fits in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from dynamorouter.errors import DataError, suggest
from dynamorouter.utils.jsonl import SkipCount, bad_row, read_jsonl

ALIASES = {"text": "text", "question": "text", "pair": "pair", "context": "pair"}
"""Keys that a row's text and pair may stand under."""


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
    skip_bad: SkipCount | None = None,
    asked: Mapping[str, Any] | None = None,
    chunk: int = 64,
) -> Iterator[tuple[Row, Predicted]]:
    """Yield each row of a JSONL file with its prediction, in order.

    Args:
        system: answers the rows.
        path: JSONL with ``text`` (or ``question``) and, where there is one, ``pair`` (or ``context``); further keys
            are passed over.
        task: the task of all rows; ``None`` routes each.
        skip_bad: where given, broken rows are counted in it and left out.
        asked: further arguments of ``predict``, such as ``abstain_below`` or ``generation``.
        chunk: rows that are answered together.

    Raises:
        DataError: a row, named by its line, cannot be read or answered.
    """
    predict: Answering = system.predict
    rows = _rows(path, skip_bad)
    while batch := list(islice(rows, chunk)):
        yield from _answer(partial(predict, **(asked or {})), batch, task, skip_bad, Path(path))


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


def _rows(path: str | Path, skip_bad: SkipCount | None) -> Iterator[Row]:
    for number, values in read_jsonl(path, skip_bad=skip_bad):
        row = _row(number, values)
        if isinstance(row, Row):
            yield row
        else:
            bad_row(f"{path}, line {number}: {row}", skip_bad)


def _row(number: int, values: Mapping[str, Any]) -> Row | str:
    """Return the row, or a sentence saying what is wrong with it."""
    fields: dict[str, str] = {}
    for key, name in ALIASES.items():
        value = values.get(key)
        if value is None:
            continue
        if name in fields:
            return f"holds {name!r} twice, once as {key!r}; keep one"
        if not isinstance(value, str):
            return f"{key!r} is a {type(value).__name__}; give a string"
        fields[name] = value
    if "text" not in fields:
        near = next((s for key in values if (s := suggest(key, ("text", "question")))), "")
        return f"has no 'text'{near}; its keys: {', '.join(sorted(values)) or 'none'}"
    row_id = values.get("id")
    return Row(number, fields["text"], fields.get("pair"), row_id if isinstance(row_id, (str, int)) else None)
