"""Merging: experts in, one expert out, in delta space and with the reconstruction error reported.

A method is one function in ``methods/``, registered by its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamorouter.utils.lazy import lazy_names

__all__ = ["Diagnosis", "MergeResult", "merge_experts", "merge_method"]

if TYPE_CHECKING:
    from dynamorouter.merging.diagnose import Diagnosis
    from dynamorouter.merging.merge import MergeResult, merge_experts
    from dynamorouter.merging.registry import merge_method
else:
    __getattr__, __dir__ = lazy_names(__name__)
