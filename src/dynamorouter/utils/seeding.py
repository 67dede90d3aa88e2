"""Random numbers that depend on a seed and on names alone."""

from __future__ import annotations

import zlib

import torch


def seeded(seed: int, *names: str) -> torch.Generator:
    """Return a generator that depends on the seed and the names alone, not on what was drawn before."""
    mixed = zlib.crc32("/".join((str(seed), *names)).encode())
    return torch.Generator().manual_seed(mixed * 2**20 + seed % 2**20)
