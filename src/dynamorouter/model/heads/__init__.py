"""Heads: from hidden states to a loss and to answers, one file for each kind."""

from __future__ import annotations
