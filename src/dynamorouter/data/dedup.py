"""One task's rows, read from a source, filtered and proved free of leaks, each step with its counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dynamorouter.data.convert import convert
from dynamorouter.data.sources import available_splits, load
from dynamorouter.errors import DataError
from dynamorouter.tasks.kinds import RowProblem
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task
from dynamorouter.tasks.text import text_key
from dynamorouter.utils.jsonl import SkipCount, bad_row

FILTERS = frozenset(
    {"empty", "too_long", "control_characters", "no_label", "unknown_label", "no_answer", "answer_not_in_context"}
)
"""Problems that drop a row with a count; any other is a broken row."""


@dataclass(slots=True)
class Pool:
    """The rows of one of the source's splits.

    Attributes:
        rows: what is left, by normalised text.
        counts: ``read``, ``kept``, what each filter dropped, and what was repaired (``fixed_...``).
        examples: the first message of each filter.
    """

    rows: dict[str, Record] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def records(self) -> list[Record]:
        """The rows in the order of the source."""
        return list(self.rows.values())

    def drop(self, keys: Iterable[str], reason: str) -> int:
        """Drop the rows whose normalised text is among ``keys``, count them under ``reason``, and say how many."""
        dropped = sum(self.rows.pop(key, None) is not None for key in keys)
        self.counts[reason] += dropped
        self.counts["kept"] = len(self.rows)
        return dropped


def key_of(record: Record) -> str:
    """Return the normalised text and pair of a record."""
    return text_key(record.text, record.pair)


def read_pools(
    task: Task,
    task_id: int,
    source: str,
    source_options: Mapping[str, Any],
    *,
    max_chars: int,
    max_words: int | None,
    skip_bad: bool,
) -> dict[str, Pool]:
    """Read and filter all splits that a source has for a task.

    Args:
        task: whose rows.
        task_id: its position in the system's list.
        source: name of the source.
        source_options: its options, see ``sources.source_options``.
        max_chars: longest text in characters.
        max_words: longest text and pair together in words; ``None`` for any.
        skip_bad: leave broken rows out with a count instead of failing.

    Raises:
        DataError: there is no ``train`` split, a row is broken, or the filters leave nothing of a split.
    """
    splits = available_splits(task, source, source_options)
    if "train" not in splits:
        raise DataError(
            f"task {task.name!r}: source {source!r} has no train split, only {', '.join(splits) or 'nothing'}; "
            "add one, or name it with `splits: {train: NAME}`"
        )
    pools = {}
    for split in splits:
        skipped = SkipCount() if skip_bad else None
        rows = load(task, split, source, source_options, skip_bad=skipped)
        pools[split] = _filtered(task, task_id, split, rows, max_chars, max_words, skipped)
    return pools


def _filtered(
    task: Task,
    task_id: int,
    split: str,
    rows: Iterable[tuple[int, dict[str, Any]]],
    max_chars: int,
    max_words: int | None,
    skipped: SkipCount | None,
) -> Pool:
    pool, fixed = Pool(), Counter[str]()
    ids: set[str] = set()
    for number, row in rows:
        pool.counts["read"] += 1
        record = convert(task, task_id, row, f"{split}-{number}", max_chars=max_chars, fixed=fixed)
        if isinstance(record, Record):
            record = _not_wordy(record, max_words)
        if isinstance(record, RowProblem):
            message = f"task {task.name!r}, split {split!r}, row {number}: {record.message}"
            if record.code not in FILTERS:
                bad_row(message, skipped)
            else:
                pool.counts[record.code] += 1
                pool.examples.setdefault(record.code, message)
            continue
        key = key_of(record)
        if key in pool.rows:
            pool.counts["duplicate"] += 1
            continue
        pool.rows[key] = record if record.id not in ids else replace(record, id=f"{record.id}-{split}-{number}")
        ids.add(record.id)
    pool.counts.update({f"fixed_{name}": count for name, count in fixed.items()})
    pool.counts["bad"] = 0 if skipped is None else skipped.count
    pool.counts["kept"] = len(pool.rows)
    if not pool.rows:
        messages = [*pool.examples.values(), *(skipped.messages if skipped else ())]
        listed = "".join(f"\n- {message}" for message in messages) or " the split is empty"
        raise DataError(
            f"task {task.name!r}: nothing is left of the {pool.counts['read']} rows of split {split!r}; "
            f"check columns, labels and limits:{listed}"
        )
    return pool


def _not_wordy(record: Record, max_words: int | None) -> Record | RowProblem:
    words = len(record.text.split()) + len((record.pair or "").split())
    if max_words is None or words <= max_words:
        return record
    return RowProblem("too_long", f"{words} words; at most {max_words} are allowed")


def remove_leaks(task: Task, pools: Mapping[str, Pool], *, fail: bool) -> int:
    """Take every row out of train whose normalised text is in validation or test, and prove that none is left.

    Rows of validation that are in test as well leave validation, so that nothing reported on was selected on.

    Args:
        task: for the message.
        pools: by split; changed in place.
        fail: raise instead of dropping.

    Returns:
        How many rows left train.

    Raises:
        DataError: ``fail`` is set and there is a leak, or the leak is all that there was.
    """
    if "validation" in pools and "test" in pools:
        pools["validation"].drop(pools["test"].rows, "also_in_test")
    held_out = set().union(*(pool.rows for split, pool in pools.items() if split != "train"))
    train = pools["train"]
    leaks = len(held_out & train.rows.keys())
    if leaks and fail:
        raise DataError(
            f"task {task.name!r}: {leaks} of {len(train.rows)} training rows are in validation or test as well "
            "(same text but for case, punctuation and spaces); remove them, or drop them from train with leaks=drop"
        )
    train.drop(held_out, "leak")
    for split, pool in pools.items():
        if not pool.rows:
            raise DataError(
                f"task {task.name!r}: all rows of {split} are in a split held out from it; "
                "give training, validation and test rows of their own"
            )
    return leaks
