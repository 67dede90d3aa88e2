"""From a native row to a record, or to the reason why it cannot be one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dynamorouter.data.sources import Row
from dynamorouter.errors import one_of
from dynamorouter.tasks.record import Record, Target
from dynamorouter.tasks.spec import GENERATIVE, TaskSpec
from dynamorouter.tasks.text import MAX_CHARS, text_problem
from dynamorouter.utils.jsonl import SkipCount, bad_row


@dataclass(frozen=True, slots=True)
class RowProblem:
    """Why a row is no record.

    Attributes:
        code: a short name to count under, such as ``unknown_label``.
        message: what was found, what is allowed, and the remedy.
    """

    code: str
    message: str


def convert(
    task: TaskSpec, task_id: int, row: dict[str, Any], id: str, *, max_chars: int = MAX_CHARS, fixed: Counter[str]
) -> Record | RowProblem:
    """Turn one native row into a record.

    Args:
        task: whose row it is.
        task_id: position of the task in the system's list.
        row: the native columns.
        id: the record's id where the data has none.
        max_chars: longest allowed text in characters.
        fixed: counts repairs under ``answer_offset`` (moved to the nearest occurrence) and ``answer_lost`` (one of
            several gold answers is not in the context and is left out).
    """
    columns = task.columns
    text = row[columns.text]
    words: list[str] = []
    if task.head == "tags":
        listed = _words(text)
        if isinstance(listed, RowProblem):
            return listed
        words, text = listed, " ".join(listed)
    pair = None if columns.pair is None else row[columns.pair]
    if task.head in GENERATIVE and isinstance(pair, str) and not pair.strip():
        pair = None  # an instruction need not come with an input
    for column, value in ((columns.text, text), (columns.pair, pair)):
        absent = column is None or (value is None and task.head in GENERATIVE and column == columns.pair)
        problem = None if absent else text_problem(value, max_chars=max_chars)
        if problem is not None:
            return RowProblem(problem[0], f"{column} {problem[1]}")
    if task.head in GENERATIVE:
        target = _written(task, row, max_chars)
    else:
        target = _target(task, row[columns.target], words, "" if pair is None else pair, fixed)
    if isinstance(target, RowProblem):
        return target
    own = row.get(columns.id) if columns.id else None
    return Record(text, pair, task_id, task.name, target, id if own in (None, "") else str(own))


def native_records(
    task: TaskSpec,
    task_id: int,
    rows: Iterable[Row],
    *,
    split: str,
    skip_bad: SkipCount | None = None,
    max_chars: int = MAX_CHARS,
) -> Iterator[Record]:
    """Turn all rows of a split into records, none dropped, none sampled: what scoring reads.

    Raises:
        DataError: a row, named by number, cannot be used, and ``skip_bad`` is not given.
    """
    for number, row in rows:
        record = convert(task, task_id, row, f"{split}-{number}", max_chars=max_chars, fixed=Counter())
        if isinstance(record, Record):
            yield record
        else:
            bad_row(f"task {task.name!r}, split {split!r}, row {number}: {record.message}", skip_bad)


def _words(value: Any) -> list[str] | RowProblem:
    """Return the tokens of a row; joined by single spaces they must fall apart into the same tokens again."""
    words = _listed(value)
    if words is None or not all(isinstance(word, str) for word in words):
        return RowProblem("not_tokens", f"tokens is {str(value)[:40]!r}; give a list of strings")
    if " ".join(words).split() != words:
        odd = next(word for word in words if word.split() != [word])
        return RowProblem("token_whitespace", f"token {odd!r} is empty or holds whitespace; split or remove it")
    return words


def _target(task: TaskSpec, value: Any, words: list[str], context: str, fixed: Counter[str]) -> Target | RowProblem:
    if task.head == "span":
        return _answers(value, context, fixed)
    if task.head == "classification":
        if value is None:
            return RowProblem("no_label", "the label is empty")
        if value not in task.labels:
            return RowProblem("unknown_label", f"label {value!r} is not in the list; allowed: {one_of(task.labels)}")
        return str(value)
    tags = _listed(value)
    if tags is None or len(tags) != len(words):
        found = type(value).__name__ if tags is None else f"{len(tags)} tags"
        return RowProblem("tag_count", f"{found} for {len(words)} tokens; give one tag for each token")
    unknown = sorted({str(tag) for tag in tags if tag not in task.labels})
    if unknown:
        listed = ", ".join(unknown)
        return RowProblem("unknown_label", f"tag {listed} is not in the list; allowed: {one_of(task.labels)}")
    return [str(tag) for tag in tags]


def _written(task: TaskSpec, row: dict[str, Any], max_chars: int) -> Target | RowProblem:
    """Return the text to be written, or several equally right ones, and beside them what only a metric reads."""
    value = row[task.columns.target]
    texts = value if isinstance(value, list) else [value]
    if value is None or not texts:
        return RowProblem("no_answer", f"{task.columns.target} is empty; give the text to be written")
    for text in texts:
        problem = text_problem(text, max_chars=max_chars)
        if problem is not None:
            code = "no_answer" if problem[0] == "empty" else problem[0]
            return RowProblem(code, f"{task.columns.target} {problem[1]}")
    extra = {name: row[column] for name, column in task.columns.extra.items()}
    listed = {name: value if isinstance(value, list) else [value] for name, value in extra.items()}
    return {"texts": texts, **listed}


def _listed(value: Any) -> list[Any] | None:
    """Return a list as it is, and the text of one (JSON, or separated by blanks) from a CSV file as a list."""
    if isinstance(value, list):
        return value
    if not isinstance(value, str):
        return None
    parsed = _parsed(value) if value.startswith("[") else None
    return parsed if isinstance(parsed, list) else value.split()


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return None


def _answers(value: Any, context: str, fixed: Counter[str]) -> Target | RowProblem:
    """Return gold answers that all stand in the context at their offsets."""
    if isinstance(value, str):
        value = _parsed(value)
    texts = value.get("text") if isinstance(value, dict) else None
    starts = value.get("answer_start") if isinstance(value, dict) else None
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        return RowProblem("not_answers", "answers must be {text: [..], answer_start: [..]}, both of the same length")
    if not texts:
        return RowProblem("no_answer", "there is no answer; unanswerable questions are not supported")
    good: dict[str, list[Any]] = {"texts": [], "starts": []}
    repairs: Counter[str] = Counter()
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool) or not text.strip():
            return RowProblem("not_answers", f"answer {text!r} at {start!r}; give visible text and a whole number")
        at = start if start >= 0 and context.startswith(text, start) else _nearest(context, text, start)
        if at is None:
            repairs["answer_lost"] += 1
            continue
        if at != start:
            repairs["answer_offset"] += 1
        good["texts"].append(text)
        good["starts"].append(at)
    if not good["texts"]:
        return RowProblem("answer_not_in_context", f"answer {texts[0]!r} does not occur in the context")
    fixed.update(repairs)
    return good


def _nearest(context: str, text: str, start: int) -> int | None:
    """Return where ``text`` occurs nearest to ``start``, the earlier of two equally near."""
    after = context.find(text, max(start, 0))
    before = context.rfind(text, 0, max(start, 0) + len(text))
    found = [at for at in (before, after) if at >= 0]
    return min(found, key=lambda at: abs(at - start)) if found else None
