"""What is in the data: balance, lengths, duplicates, vocabulary, as numbers, sentences and figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamorouter.utils.lazy import lazy_names

__all__ = ["Exploration", "Finding", "explore"]

if TYPE_CHECKING:
    from dynamorouter.explore.survey import Exploration, Finding, explore
else:
    __getattr__, __dir__ = lazy_names(__name__)
