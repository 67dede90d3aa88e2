"""Names of a package that are imported when they are first asked for (PEP 562).

A room says what it offers without loading it: ``import dynamorouter`` loads no torch, and rooms that use each other's
modules make no circle. What it offers is written for type checkers, and read from there:

    __all__ = ["System"]

    if TYPE_CHECKING:
        from dynamorouter.system.system import System
    else:
        __getattr__, __dir__ = lazy_names(__name__)
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from dynamorouter.errors import one_of, suggest


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package, for what its ``if TYPE_CHECKING:`` imports.

    Args:
        package: its ``__name__``.

    Raises:
        AttributeError: from ``__getattr__``, for a name that is not imported there.
    """

    def load(name: str) -> Any:
        modules = imported_for_types(package)
        if name not in modules:
            hint = suggest(name, modules)
            raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}; it offers {one_of(modules)}")
        value = getattr(import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *imported_for_types(package)})

    return load, listed


@cache
def imported_for_types(package: str) -> dict[str, str]:
    """Read which names the ``if TYPE_CHECKING:`` of a loaded package imports, with the module of each."""
    tree = ast.parse(Path(str(sys.modules[package].__file__)).read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in imports for alias in node.names}
