"""What the built-in rows are made of: one module per task, each with ``rows(split)``, and the texts that it reads.

``rows("train")`` and ``rows("validation")`` return rows in the task's native columns, the same on every call, so
``tools/write_builtin.py`` writes them once and the package ships the files. A module whose name starts with an
underscore holds helpers.
"""

from __future__ import annotations

import importlib
import pkgutil


def names() -> list[str]:
    """Return the tasks that rows are generated for, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def generate(task: str, split: str) -> list[dict[str, object]]:
    """Return the rows of a split of one task, in order.

    Raises:
        ValueError: if ``split`` is neither ``train`` nor ``validation``.
    """
    rows: list[dict[str, object]] = importlib.import_module(f"{__name__}.{task}").rows(split)
    return rows
