"""The rows written for this project, as files ``TASK/SPLIT.jsonl.gz`` in each task's native columns.

``tools/write_builtin.py`` writes them from ``tools/builtin_data``; a test compares the two.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
SPLITS = ("train", "validation")
"""The splits that every task has."""


def names() -> list[str]:
    """Return the tasks that there are built-in rows for, sorted."""
    return sorted(path.parent.name for path in FOLDER.glob("*/train.jsonl.gz"))


def rows_path(task: str, split: str, folder: Path = FOLDER) -> Path:
    """Return the file that holds, or is to hold, a split of one task."""
    return folder / task / f"{split}.jsonl.gz"
