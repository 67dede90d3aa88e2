"""Frozen bases, banks of experts over their layers, heads, and PEFT's adapter folders."""

from __future__ import annotations
