"""Metrics of answers and of routing, with bootstrap intervals and paired tests."""

from __future__ import annotations
