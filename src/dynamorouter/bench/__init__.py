"""The comparison: arms on the same items, paired statistics, and a report."""

from __future__ import annotations
