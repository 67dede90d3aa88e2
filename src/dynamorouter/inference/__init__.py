"""From rows to answers: passes, routes, generation."""

from __future__ import annotations
