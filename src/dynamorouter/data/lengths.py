"""What a tokenizer makes of prepared rows: how long they are, and how many a window cuts off."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dynamorouter.errors import DataError
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task

_BATCH = 512


@dataclass(frozen=True, slots=True)
class TruncationReport:
    """Lengths in tokens, special tokens included, of one task's rows.

    Attributes:
        task: its name.
        rows: how many were measured.
        max_tokens: the task's window.
        truncated: share of the rows longer than the window, 0 to 1; spans read these in several windows.
        quantiles: length at ``p50``, ``p90``, ``p99`` and ``max`` (the smallest length not exceeded by that share).
    """

    task: str
    rows: int
    max_tokens: int
    truncated: float
    quantiles: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self)


def truncation_report(records: Sequence[Record], tokenizer: Callable[..., Any], task: Task) -> TruncationReport:
    """Measure rows in tokens.

    Args:
        records: rows of one task.
        tokenizer: called as a ``transformers`` tokenizer is, with texts, pairs and ``truncation=False``.
        task: whose window they must fit.

    Raises:
        DataError: there are no rows.
    """
    if not records:
        raise DataError(f"task {task.name!r}: no rows to measure; prepare the data first")
    lengths: list[int] = []
    for start in range(0, len(records), _BATCH):
        batch = records[start : start + _BATCH]
        texts = [record.text for record in batch]
        pairs = None if task.columns.pair is None else [record.pair or "" for record in batch]
        lengths += [len(ids) for ids in tokenizer(texts, pairs, truncation=False)["input_ids"]]
    lengths.sort()
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return TruncationReport(
        task=task.name,
        rows=len(lengths),
        max_tokens=task.max_tokens,
        truncated=sum(length > task.max_tokens for length in lengths) / len(lengths),
        quantiles={name: lengths[math.ceil(share * len(lengths)) - 1] for name, share in shares.items()},
    )
