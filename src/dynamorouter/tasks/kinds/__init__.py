"""Kinds of head without their tensors, one file for each: targets, labels, what a draw and noise may do, JSON."""

from __future__ import annotations

from dynamorouter.tasks.kinds.base import HeadKind, RowProblem, head_kind, head_kinds

__all__ = ["HeadKind", "RowProblem", "head_kind", "head_kinds"]
