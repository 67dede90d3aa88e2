"""The finished thing: what is saved, loaded and asked, its library of experts, and changes to what is saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamorouter.utils.lazy import lazy_names

__all__ = [
    "AddedExpert",
    "ComplexityRouter",
    "Library",
    "RouterFit",
    "System",
    "add_expert",
    "add_merge",
    "fit_system_router",
    "import_adapters",
    "list_experts",
    "merged_system",
    "remove_expert",
    "train_expert",
]

if TYPE_CHECKING:
    from dynamorouter.system.complexity import ComplexityRouter
    from dynamorouter.system.edit import add_expert, import_adapters, list_experts, remove_expert, train_expert
    from dynamorouter.system.joining import AddedExpert
    from dynamorouter.system.library import Library
    from dynamorouter.system.merge import add_merge, merged_system
    from dynamorouter.system.router import fit_system_router
    from dynamorouter.system.routes import RouterFit
    from dynamorouter.system.system import System
else:
    __getattr__, __dir__ = lazy_names(__name__)
