"""Drawing splits by what a row is, never by where it stood in its file.

Rows are ordered by a hash of (seed, task, purpose, normalised text), so a draw changes neither with the order of the
file nor with which other tasks there are, and a larger draw holds the smaller one.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from dynamorouter.tasks.kinds import HeadKind
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.text import text_key


def rank(record: Record, *, seed: int, purpose: str) -> bytes:
    """Return the sort key of a record: a hash of seed, task, purpose and normalised text."""
    parts = (str(seed), record.task_name, purpose, text_key(record.text, record.pair))
    return hashlib.blake2b("\x1e".join(parts).encode("utf-8"), digest_size=16).digest()


def largest_remainder(counts: Mapping[str, int], total: int) -> dict[str, int]:
    """Share ``total`` out in proportion to ``counts``, never more than there are; ties go by name."""
    available = sum(counts.values())
    total = min(total, available)
    exact = {name: total * count / available if available else 0.0 for name, count in counts.items()}
    shares = {name: int(value) for name, value in exact.items()}
    by_rest = sorted(counts, key=lambda name: (shares[name] - exact[name], name))
    for name in by_rest[: total - sum(shares.values())]:
        shares[name] += 1
    return shares


def draw(
    records: Sequence[Record], sizes: Mapping[str, int], *, kind: HeadKind, seed: int, purpose: str
) -> tuple[dict[str, list[Record]], list[Record]]:
    """Draw disjoint splits with the shares of labels, or of what else the kind of head counts, kept in each.

    Args:
        records: one task's rows, no two with the same normalised text.
        sizes: rows per split; a split gets fewer when the rows run out. Splits are drawn in this order.
        kind: says what the shares are of.
        seed: of the draw.
        purpose: names the draw, so that two draws with one seed are not the same.

    Returns:
        The splits, and the rows that are left, all in the order of their hashes.
    """
    ranks = {id(record): rank(record, seed=seed, purpose=purpose) for record in records}
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: ranks[id(record)]):
        groups[kind.stratum(record.target)].append(record)
    splits: dict[str, list[Record]] = {}
    for name, size in sizes.items():
        quotas = largest_remainder({key: len(group) for key, group in groups.items()}, size)
        taken: list[Record] = []
        for key, quota in quotas.items():
            taken += groups[key][:quota]
            groups[key] = groups[key][quota:]
        splits[name] = sorted(taken, key=lambda record: ranks[id(record)])
    remaining = [record for group in groups.values() for record in group]
    return splits, sorted(remaining, key=lambda record: ranks[id(record)])


def shrink(sizes: Mapping[str, int], available: int) -> dict[str, int]:
    """Return the sizes, or where the rows do not suffice, all of them smaller in the same proportion."""
    if sum(sizes.values()) <= available:
        return dict(sizes)
    return largest_remainder(sizes, available)
