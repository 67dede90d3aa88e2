"""Training: experts side by side, the router, both together, and one adapter for all tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamorouter.utils.lazy import lazy_names

__all__ = ["fit_experts", "fit_fusions", "fit_joint", "fit_router", "fit_shared"]

if TYPE_CHECKING:
    from dynamorouter.training.experts import fit_experts
    from dynamorouter.training.fusion import fit_fusions
    from dynamorouter.training.joint import fit_joint
    from dynamorouter.training.multitask import fit_shared
    from dynamorouter.training.router import fit_router
else:
    __getattr__, __dir__ = lazy_names(__name__)
