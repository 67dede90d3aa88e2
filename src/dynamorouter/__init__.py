"""Many LoRA experts over one frozen base model, the right one chosen in a single pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamorouter.utils.lazy import lazy_names

__version__ = "0.1.0"
__all__ = [
    "Base",
    "ComplexityRouter",
    "Expert",
    "Library",
    "Prediction",
    "Record",
    "Route",
    "Router",
    "System",
    "Task",
    "__version__",
    "compose",
    "fit_experts",
    "fit_router",
    "load_adapter",
    "merge_experts",
]

if TYPE_CHECKING:
    from dynamorouter.config.compose import compose
    from dynamorouter.inference.prediction import Prediction
    from dynamorouter.merging.merge import merge_experts
    from dynamorouter.model.base.base import Base
    from dynamorouter.model.lora.expert import Expert
    from dynamorouter.model.lora.peft import load_adapter
    from dynamorouter.routing.base import Route, Router
    from dynamorouter.system.complexity import ComplexityRouter
    from dynamorouter.system.library import Library
    from dynamorouter.system.system import System
    from dynamorouter.tasks.record import Record
    from dynamorouter.tasks.task import Task
    from dynamorouter.training.experts import fit_experts
    from dynamorouter.training.router import fit_router
else:
    __getattr__, __dir__ = lazy_names(__name__)
