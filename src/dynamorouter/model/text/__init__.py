"""From text to batches: tokens, windows, prompts, packing."""

from __future__ import annotations
