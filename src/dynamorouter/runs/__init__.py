"""A run: its folder, its phases, from settings to objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamorouter.utils.lazy import lazy_names

__all__ = ["Run", "fit_experts", "fit_joint", "fit_router", "open_run", "prepare", "report"]

if TYPE_CHECKING:
    from dynamorouter.runs.phases import fit_experts, fit_joint, fit_router, prepare, report
    from dynamorouter.runs.run import Run, open_run
else:
    __getattr__, __dir__ = lazy_names(__name__)
