"""What is in the data: balance, lengths, duplicates, vocabulary, as numbers, sentences and pictures."""

from __future__ import annotations
