"""Rows as they are in a source, none dropped, none sampled unless asked for; and the words of their texts."""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dynamorouter.data.convert import convert
from dynamorouter.data.sources import available_splits, load, source_options
from dynamorouter.errors import DataError
from dynamorouter.tasks.kinds import head_kind
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task
from dynamorouter.utils.jsonl import SkipCount

FEW_LABELS = 50
"""A text that is written counts as a label where there are no more different ones than this."""


@dataclass(slots=True)
class TaskRows:
    """All rows of one task.

    Attributes:
        task: whose rows.
        splits: records by split, in the order of the source.
        problems: rows that are no records, by reason.
    """

    task: Task
    splits: dict[str, list[Record]] = field(default_factory=dict)
    problems: Counter[str] = field(default_factory=Counter)

    @property
    def records(self) -> list[Record]:
        """The rows of all splits, one split after another."""
        return [record for records in self.splits.values() for record in records]


def read_rows(
    task: Task,
    source: str,
    options: Mapping[str, Any] | None = None,
    *,
    limit: int | None = None,
    seed: int = 0,
) -> TaskRows:
    """Read all splits of a task that a source has; rows that cannot be used are counted by reason.

    Args:
        task: whose rows.
        source: name of the source.
        options: its options over those that the task has, such as ``root``.
        limit: most rows per split, drawn at random; ``None`` for all.
        seed: of that draw.

    Raises:
        DataError: the source has nothing for the task, or nothing that can be used.
    """
    merged = source_options(task, source, options)
    task_rows = TaskRows(task)
    for split in available_splits(task, source, merged):
        skipped, records = SkipCount(), []
        for number, row in load(task, split, source, merged, skip_bad=skipped):
            record = convert(task, 0, row, f"{split}-{number}", fixed=Counter())
            if isinstance(record, Record):
                records.append(record)
            else:
                task_rows.problems[record.code] += 1
        if skipped.count:
            task_rows.problems["broken"] += skipped.count
        if limit is not None and len(records) > limit:
            drawn = sorted(random.Random(seed + zlib.crc32(split.encode())).sample(range(len(records)), limit))
            records = [records[i] for i in drawn]
        if records:
            task_rows.splits[split] = records
    if not task_rows.splits:
        reasons = ", ".join(f"{count} {name}" for name, count in task_rows.problems.items()) or "no rows"
        raise DataError(f"task {task.name!r}: source {source!r} has nothing to explore ({reasons}); check its files")
    return task_rows


def target_text(record: Record) -> str | None:
    """Return the first text that a row asks for; ``None`` for labels and tags."""
    texts = record.target.get("texts") if isinstance(record.target, dict) else None
    return None if not texts else str(texts[0])


def labels(task: Task, records: Sequence[Record]) -> list[str] | None:
    """Return each row's class.

    That is its label, or the text it asks for where there are so few different ones that these are labels in words;
    ``None`` for tasks without classes.
    """
    kind = head_kind(task.head)
    classes = [named for record in records if (named := kind.class_of(record.target)) is not None]
    if len(classes) < len(records):
        return None
    few = kind.needs_labels or len(set(classes)) <= min(FEW_LABELS, len(classes) // 5)
    return classes if few else None


def word_count(text: str | None) -> int:
    """Return how many words, parted by white space, a text has."""
    return len((text or "").split())
