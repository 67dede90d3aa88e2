"""Tasks: what they are, how one is built from its YAML file, and the metrics that judge answers to them."""

from __future__ import annotations
