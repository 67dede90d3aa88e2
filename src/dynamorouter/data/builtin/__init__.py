"""The data written for this project: one module per task, each with ``rows(split)``.

``rows("train")`` and ``rows("validation")`` return rows in the task's native columns, the same on every call. A module
whose name starts with an underscore holds helpers. ``names()`` lists the tasks that there is built-in data for.
"""

from __future__ import annotations

import pkgutil

SPLITS = ("train", "validation")
"""The splits that every module has."""


def names() -> list[str]:
    """Return the tasks that there is built-in data for, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
