"""What a comparison shows: figures, tables, ``bench.json``, ``report.html``."""

from __future__ import annotations
