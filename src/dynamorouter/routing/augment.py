"""Rows for training a router that must also know a pair when it comes as one run of text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dynamorouter.errors import RouterError

Row = tuple[str, str | None]


def with_joined_pairs(
    rows: Sequence[Row], targets: Tensor, *, share: float, generator: torch.Generator
) -> tuple[list[Row], Tensor]:
    """Add a share of the pairs once more, as one run of text, after the rows themselves.

    Segment embeddings mark a pair from the embeddings on; a router that has seen no other pair takes them for the
    task itself, and misses the same pair when a space joins it.

    Args:
        rows: ``N`` rows as (text, pair or None).
        targets: index of each row's expert, ``(N,)``.
        share: of the pairs that are added, between 0 and 1.
        generator: draws them.

    Returns:
        The rows with those added, and their targets.

    Raises:
        RouterError: the share is out of range.
    """
    if not 0.0 <= share <= 1.0:
        raise RouterError(f"the share of joined pairs is {share}; set it between 0 and 1")
    pairs = torch.tensor([place for place, (_, pair) in enumerate(rows) if pair is not None], dtype=torch.int64)
    order = torch.randperm(len(pairs), generator=generator, device=generator.device).cpu()
    chosen = pairs[order[: round(share * len(pairs))]].sort().values
    added: list[Row] = [(f"{rows[place][0]} {rows[place][1]}", None) for place in chosen.tolist()]
    return [*rows, *added], torch.cat([targets, targets[chosen.to(targets.device)]])
