"""The contestants: each family one class in one of these modules, registered by name."""

from __future__ import annotations
