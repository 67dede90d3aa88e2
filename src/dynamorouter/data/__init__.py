"""Data: where rows come from, and the leak-free splits that the phases read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamorouter.utils.lazy import lazy_names

__all__ = ["PrepareOptions", "PreparedData", "Source", "as_records", "load_prepared"]

if TYPE_CHECKING:
    from dynamorouter.data.prepare import PreparedData, PrepareOptions, load_prepared
    from dynamorouter.data.rows import as_records
    from dynamorouter.data.sources import Source
else:
    __getattr__, __dir__ = lazy_names(__name__)
