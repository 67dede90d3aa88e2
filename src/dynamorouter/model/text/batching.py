"""Batches under a token budget, and decoding of windows whose rows belong to different experts.

Letters: B windows, S positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

FULL = 1024
"""Tokens from which a pass is worth its fixed cost, so that padding may cut it short."""


def token_batches(lengths: Sequence[int], *, budget: int) -> list[list[int]]:
    """Group positions by length so that no group holds more than ``budget`` tokens, padding included.

    A single sequence longer than the budget is a group of its own. A group that holds ``FULL`` tokens takes none that
    would be padded by more than a quarter of its own length. Longest first, so that memory peaks early.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    groups: list[list[int]] = []
    for i in order:
        longest = lengths[groups[-1][0]] if groups else 0
        padded_tokens = len(groups[-1]) * longest if groups else 0
        if groups and padded_tokens + longest <= budget and (padded_tokens < FULL or longest <= 1.25 * lengths[i]):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def rows_of(experts: Sequence[int]) -> dict[int, list[int]]:
    """Group batch positions by expert; -1 is left out."""
    positions_of: dict[int, list[int]] = {}
    for position, expert in enumerate(experts):
        if expert >= 0:
            positions_of.setdefault(expert, []).append(position)
    return positions_of
