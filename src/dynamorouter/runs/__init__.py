"""A run: its folder, its phases, from settings to objects."""

from __future__ import annotations
