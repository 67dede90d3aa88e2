"""What tests share: tiny models, tiny runs, references."""

from __future__ import annotations
