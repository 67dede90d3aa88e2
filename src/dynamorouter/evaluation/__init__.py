"""How well a system does: scores with intervals, routing, complexity."""

from __future__ import annotations
