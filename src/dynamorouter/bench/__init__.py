"""The comparison: arms on the same rows, paired statistics, studies, reports."""

from __future__ import annotations
