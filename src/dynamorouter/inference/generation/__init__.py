"""Writing text: prefill, decoding step by step, sampling, streaming."""

from __future__ import annotations
