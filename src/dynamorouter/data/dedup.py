"""One task's rows, read from a source, filtered and proved free of leaks, each step with its counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dynamorouter.data.config import FilterConfig
from dynamorouter.data.convert import convert, labels_message
from dynamorouter.data.formats import OVER_LINES
from dynamorouter.data.sources import Row, available_splits, load, sources
from dynamorouter.errors import DataError, one_of
from dynamorouter.metrics.base import target_problem
from dynamorouter.tasks.kinds import RowProblem, head_kind
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task
from dynamorouter.tasks.text import text_key
from dynamorouter.utils.jsonl import SkipCount, bad_row

DROPPED = frozenset({"empty", "too_long", "control_characters", "no_label", "no_answer", "answer_not_in_context"})
"""Problems that drop a row with a count."""
COUNTED = {
    "unknown_label": "have a label that is none of the task's",
    "cannot_be_scored": "can never be scored",
    "unanswerable": "are questions without an answer",
}
"""Problems that are counted through all of a split, and then stop it unless the filters say otherwise.

Any other is a broken row.
"""


@dataclass(slots=True)
class SplitRows:
    """The rows of one of the source's splits.

    Attributes:
        rows: what is left, by normalised text.
        counts: ``read``, ``kept``, what each filter dropped, and what was repaired (``fixed_...``).
        examples: the first message of each filter.
        unknown: labels that are none of the task's, and how many rows each stands in.
    """

    rows: dict[str, Record] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)

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

    def told(self) -> str:
        """Say how many rows were read, what is left of them, and why the others are not."""
        return told_counts(self.counts)

    def left_out(self, problem: RowProblem, message: str) -> None:
        """Count a row that is no record."""
        self.counts[problem.code] += 1
        self.examples.setdefault(problem.code, message)
        self.unknown.update(problem.unknown)


def told_counts(counts: Mapping[str, int]) -> str:
    """Say in words what the counts of a split's rows count: rows that were read, left out by reason, and repaired."""
    counted = {name.replace("_", " "): count for name, count in sorted(counts.items()) if count}
    rows_read, rows_kept = counted.pop("read", 0), counted.pop("kept", 0) + counted.pop("carved", 0)
    long_rows = counted.pop(OVER_LINES.replace("_", " "), 0)
    repaired = [f"{count} {name[6:]}" for name, count in counted.items() if name.startswith("fixed ")]
    dropped = [f"{count} {name}" for name, count in counted.items() if not name.startswith("fixed ")]
    parts = [f"{rows_read} rows read", f"{rows_kept} kept"]
    parts += [f"left out: {', '.join(dropped)}"] if dropped else []
    parts += [f"repaired: {', '.join(repaired)}"] if repaired else []
    parts += [f"{long_rows} rows over several lines of the file"] if long_rows else []
    return "; ".join(parts)


def left_out_notes(name: str, counts_by_split: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return a sentence for each split of a task of which rows were left out or repaired."""
    return [
        f"{name}, {split}: {told_counts(counts)}"
        for split, counts in counts_by_split.items()
        if any(count for reason, count in counts.items() if reason not in ("read", "kept", "carved"))
    ]


def key_of(record: Record) -> str:
    """Return the normalised text and pair of a record."""
    return text_key(record.text, record.pair)


def read_split_rows(
    task: Task, task_id: int, source: str, source_options: Mapping[str, Any], filters: FilterConfig
) -> dict[str, SplitRows]:
    """Read and filter all splits that a source has for a task.

    Args:
        task: whose rows.
        task_id: its position in the system's list.
        source: name of the source.
        source_options: its options, see ``sources.source_options``.
        filters: which rows are dropped.

    Raises:
        DataError: there is no ``train`` split, rows are broken, have unknown labels or can never be scored, train has
            one class alone, or the filters leave nothing of a split.
    """
    splits = available_splits(task, source, source_options)
    if "train" not in splits:
        raise DataError(
            f"task {task.name!r}: source {source!r} has no train split, only {', '.join(splits) or 'nothing'}; "
            "add one, or name it with `splits: {train: NAME}`"
        )
    pools = {}
    for split in splits:
        skipped = SkipCount() if filters.skip_bad else None
        rows = load(task, split, source, source_options, skip_bad=skipped)
        pools[split] = _filtered(task, task_id, split, rows, filters, skipped)
        pools[split].counts.update(sources.get(source)().remarks(task, split, source_options))
    check_classes(task, pools["train"].records, where=f"task {task.name!r}, split 'train'")
    return pools


def check_classes(task: Task, records: Sequence[Record], *, where: str) -> None:
    """Refuse rows that there is nothing to be told apart in.

    Raises:
        DataError: all rows have one label, or no word of any row has a tag but ``O``.
    """
    kind = head_kind(task.head)
    if kind.classes is None:
        return
    targets = [record.target if isinstance(record.target, list) else [record.target] for record in records]
    classes = {str(label) for target in targets for label in target}
    if len(classes) < 2:
        raise DataError(
            f"{where}: all {len(records)} rows have the one label {one_of(classes)!r}, of {one_of(task.labels)}; "
            "give rows of another label too, or look whether the column of labels is the right one"
        )


def _filtered(
    task: Task,
    task_id: int,
    split: str,
    rows: Iterable[Row],
    filters: FilterConfig,
    skipped: SkipCount | None,
) -> SplitRows:
    pool, fixed = SplitRows(), Counter[str]()
    ids: set[str] = set()
    where = f"task {task.name!r}, split {split!r}"
    for number, row in rows:
        pool.counts["read"] += 1
        record = convert(task, task_id, row, f"{split}-{number}", max_chars=filters.max_chars, fixed=fixed)
        if isinstance(record, Record):
            record = _usable(task, record, filters.max_words)
        if isinstance(record, RowProblem):
            message = f"row {number}: {record.message}"
            if record.code in DROPPED or record.code in COUNTED:
                pool.left_out(record, message)
            else:
                bad_row(f"{where}, {message}", skipped)
            continue
        key = key_of(record)
        if key in pool.rows:
            same = pool.rows[key].target == record.target
            pool.counts["duplicate" if same else "duplicate_with_another_target"] += 1
            continue
        pool.rows[key] = record if record.id not in ids else replace(record, id=f"{record.id}-{split}-{number}")
        ids.add(record.id)
    pool.counts.update({f"fixed_{name}": count for name, count in fixed.items()})
    pool.counts["bad"] = 0 if skipped is None else skipped.count
    pool.counts["kept"] = len(pool.rows)
    _check_left_out(task, pool, filters, where)
    if not pool.rows:
        messages = [f"{where}, {example}" for example in pool.examples.values()]
        messages += skipped.messages if skipped else ()
        listed = "".join(f"\n- {message}" for message in messages) or " the split is empty"
        raise DataError(
            f"task {task.name!r}: nothing is left of the {pool.counts['read']} rows of split {split!r}; "
            f"check columns, labels and limits:{listed}"
        )
    return pool


def _usable(task: Task, record: Record, max_words: int | None) -> Record | RowProblem:
    """Return a record, or why it cannot be learned from or scored."""
    words = len(record.text.split()) + len((record.pair or "").split())
    if max_words is not None and words > max_words:
        return RowProblem("too_long", f"{words} words; at most {max_words} are allowed")
    problem = target_problem(task, record.target)
    return record if problem is None else RowProblem("cannot_be_scored", problem)


def _check_left_out(task: Task, pool: SplitRows, filters: FilterConfig, where: str) -> None:
    """Stop where rows have unknown labels, can never be scored or answered, unless they are to be left out.

    Raises:
        DataError: there are such rows; the message counts them.
    """
    mistakes = []
    if pool.unknown and filters.unknown_labels == "fail":
        counted = labels_message(task, pool.unknown, rows=pool.counts["unknown_label"], read=pool.counts["read"])
        mistakes.append(f"{counted}, or leave such rows out and count them with data.filters.unknown_labels=drop")
    for reason in ("cannot_be_scored", "unanswerable"):
        if pool.counts[reason] and not filters.skip_bad:
            mistakes.append(
                f"{pool.counts[reason]} of {pool.counts['read']} rows {COUNTED[reason]}, such as "
                f"{pool.examples[reason]}; correct them, or leave bad rows out and count them (--skip-bad)"
            )
    if mistakes:
        raise DataError("\n".join(f"{where}: {mistake}" for mistake in mistakes))


def remove_leaks(task: Task, pools: Mapping[str, SplitRows], *, fail: bool) -> int:
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
