"""Experts: banks of low-rank factors, gates, PEFT's format."""

from __future__ import annotations
