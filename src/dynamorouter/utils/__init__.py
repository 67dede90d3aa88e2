"""Files, progress, tracking, devices, seeding: what every room uses."""

from __future__ import annotations
