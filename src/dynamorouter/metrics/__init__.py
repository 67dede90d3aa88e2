"""Metrics of answers and of routing, with bootstrap intervals and paired tests; the sandbox for generated code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamorouter.utils.lazy import lazy_names

__all__ = [
    "Metric",
    "bootstrap_ci",
    "bootstrap_difference",
    "expected_calibration_error",
    "get_metric",
    "holm",
    "mcnemar",
    "protection",
    "rank_arms",
    "router_metrics",
    "run_tests",
    "score",
]

if TYPE_CHECKING:
    from dynamorouter.metrics.base import Metric, get_metric, score
    from dynamorouter.metrics.bootstrap import bootstrap_ci, bootstrap_difference
    from dynamorouter.metrics.paired import holm, mcnemar, rank_arms
    from dynamorouter.metrics.routing import expected_calibration_error, router_metrics
    from dynamorouter.metrics.sandbox.runner import protection, run_tests
else:
    __getattr__, __dir__ = lazy_names(__name__)
