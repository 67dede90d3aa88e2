"""Merging: experts in, one expert out, in delta space and with the reconstruction error reported."""

from __future__ import annotations
