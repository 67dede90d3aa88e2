"""How well a system does: scores with intervals, routing beside its baselines, complexity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamorouter.utils.lazy import lazy_names

__all__ = ["score_system"]

if TYPE_CHECKING:
    from dynamorouter.evaluation.score import score_system
else:
    __getattr__, __dir__ = lazy_names(__name__)
