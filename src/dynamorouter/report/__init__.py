"""Documents and figures that every report shares."""

from __future__ import annotations
