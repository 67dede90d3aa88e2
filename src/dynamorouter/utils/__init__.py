"""What every room uses: files, rows in JSONL, devices, progress, tracking, seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamorouter.utils.lazy import lazy_names

__all__ = [
    "Progress",
    "Tracker",
    "pick_device",
    "pick_dtype",
    "read_json",
    "read_jsonl",
    "seeded",
    "shown_progress",
    "versions",
    "write_json",
]

if TYPE_CHECKING:
    from dynamorouter.utils.devices import pick_device, pick_dtype
    from dynamorouter.utils.environment import versions
    from dynamorouter.utils.files import read_json, write_json
    from dynamorouter.utils.jsonl import read_jsonl
    from dynamorouter.utils.progress import Progress, shown_progress
    from dynamorouter.utils.seeding import seeded
    from dynamorouter.utils.tracking import Tracker
else:
    __getattr__, __dir__ = lazy_names(__name__)
