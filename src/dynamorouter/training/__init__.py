"""Training: experts side by side, the router, and both together."""

from __future__ import annotations
