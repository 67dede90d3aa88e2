"""Rows that go through the bases together, with what a router reads of them.

Letters: B batch, S positions, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from dynamorouter.inference.generation.decoding import Prefill
from dynamorouter.model.text.tokenize import Batch, TextPair, Window
from dynamorouter.routing.base import RouterInput


@dataclass(slots=True)
class Chunk:
    """Rows that go through the bases together.

    Attributes:
        rows: texts and pairs.
        windows: of each row, on the router's base; the first of each is what the router reads.
        batch: the first windows, padded.
        states: the trunk's hidden states by layer, ``{layer: (B, S, D)}``; empty where no router reads any.
        depth: how deep the trunk was run.
        prefill: the same with keys and values, on a base that generates, for experts to go on from.
    """

    rows: list[TextPair]
    windows: list[list[Window]]
    batch: Batch
    states: Mapping[int, Tensor] = field(default_factory=dict)
    depth: int = 0
    prefill: Prefill | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def router_input(self) -> RouterInput:
        """Return what a router reads: hidden states and, for lexical baselines, the texts."""
        return RouterInput(states=self.states, mask=self.batch.mask, texts=self.rows)
