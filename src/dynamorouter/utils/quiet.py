"""Silencing one message of another package where it arises: what it says is known there, and is no mishap.

Nothing is silenced for the rest of the program: other messages, and the same message elsewhere, are shown.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_warning(category: type[Warning], message: str) -> Iterator[None]:
    """Drop warnings of a category whose text begins with ``message`` while the block runs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", re.escape(message), category)
        yield


@contextmanager
def without_log(logger: str, message: str) -> Iterator[None]:
    """Drop the records of a logger whose text holds ``message`` while the block runs."""

    def other(record: logging.LogRecord) -> bool:
        return message not in record.getMessage()

    source = logging.getLogger(logger)
    source.addFilter(other)
    try:
        yield
    finally:
        source.removeFilter(other)
