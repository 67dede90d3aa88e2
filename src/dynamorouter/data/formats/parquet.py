"""Rows of a Parquet file."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dynamorouter.data.formats.packed import read_bytes
from dynamorouter.errors import DataError, MissingExtraError
from dynamorouter.utils.jsonl import SkipCount


def read_parquet(
    path: Path, options: Mapping[str, Any], skip_bad: SkipCount | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows, numbered from 1."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError(f"reading {path} needs pyarrow; install it with `pip install pyarrow`") from error
    number = 0
    try:
        file = io.BytesIO(read_bytes(path)) if path.suffix.lower() == ".gz" else path
        for batch in pq.ParquetFile(file).iter_batches():
            rows: list[dict[str, Any]] = batch.to_pylist()
            for row in rows:
                number += 1
                yield number, row
    except pa.ArrowException as error:
        raise DataError(f"{path}, after row {number}: damaged Parquet ({error}); write the file again") from error
