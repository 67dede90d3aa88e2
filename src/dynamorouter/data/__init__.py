"""Data: records, where rows come from, and the splits that the phases read."""

from __future__ import annotations
