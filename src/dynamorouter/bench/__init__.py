"""The comparison: arms on the same rows, paired statistics, studies, reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamorouter.utils.lazy import lazy_names

__all__ = ["Arm", "arm_names", "bench"]

if TYPE_CHECKING:
    from dynamorouter.bench.arms.base import Arm, arm_names
    from dynamorouter.bench.run import bench
else:
    __getattr__, __dir__ = lazy_names(__name__)
