"""Many LoRA experts over one frozen base model, the right one chosen in a single pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["ComplexityRouter", "System", "__version__"]

if TYPE_CHECKING:
    from dynamorouter.system.complexity import ComplexityRouter
    from dynamorouter.system.system import System


def __getattr__(name: str) -> object:
    """Import torch only when the product itself is asked for."""
    if name == "System":
        from dynamorouter.system.system import System

        return System
    if name == "ComplexityRouter":
        from dynamorouter.system.complexity import ComplexityRouter

        return ComplexityRouter
    raise AttributeError(f"module 'dynamorouter' has no attribute {name!r}")
