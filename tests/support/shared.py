"""Folders that are made once for all workers of a test session, since a trained system is dear."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that the first worker to ask for it fills, and that no test may change.

    Args:
        factory: of the worker; all workers' folders of one session lie in one place.
        name: of the folder in that place, such as ``tiny/bert``; the same name always means the same content.
        make: is called with the empty folder; what it wrote before it failed is cleared away by who asks next.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / "shared" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    finished = folder.parent / f"{folder.name}.finished"
    with FileLock(folder.parent / f"{folder.name}.lock"):
        if not finished.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            finished.touch()
    return folder
