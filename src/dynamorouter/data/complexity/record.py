"""Where a record keeps its complexity: beside the text to be written, in the target that no router reads."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dynamorouter.tasks.record import Record

KEY = "complexity"
"""Name of the column in prepared rows and of the entry in a record's target."""


def complexity_of(record: Record) -> float:
    """Return a record's complexity, 0 to 1; NaN where it was not measured."""
    values = record.target.get(KEY) if isinstance(record.target, dict) else None
    return float(values[0]) if values else math.nan


def complexities(records: Sequence[Record]) -> list[float]:
    """Return the complexity of each record."""
    return [complexity_of(record) for record in records]
