"""The merge methods, one function each."""

from __future__ import annotations
