"""What a router reads and what it returns.

Letters: B batch, S positions, D width, E experts, K experts chosen per row, L layers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynamorouter.registry import Registry


@dataclass(frozen=True, slots=True)
class RouterInput:
    """A batch as a router sees it: never a task name, a template, a label or an answer.

    Attributes:
        states: hidden states by layer, ``{layer: (B, S, D)}``; layer 0 is the embeddings' output, layer i
            the output of the i-th block. Only the layers that the router names in ``layers`` are there.
        mask: 1 where a position holds a token, ``(B, S)``.
        texts: the rows themselves, as (text, pair or None); used by the lexical baselines alone.
    """

    states: Mapping[int, Tensor]
    mask: Tensor
    texts: Sequence[tuple[str, str | None]]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class Route:
    """Which experts answer each row of a batch.

    Attributes:
        experts: chosen experts, best first, ``(B, K)`` int64.
        weights: their weights, rows sum to one, ``(B, K)``.
        probabilities: over all experts, ``(B, E)``.
        confidence: calibrated probability of the best expert, ``(B,)``.
        abstained: true where the confidence is below the threshold, ``(B,)`` bool.
    """

    experts: Tensor
    weights: Tensor
    probabilities: Tensor
    confidence: Tensor
    abstained: Tensor

    @staticmethod
    def from_probabilities(probabilities: Tensor, *, top_k: int = 1, abstain_below: float = 0.0) -> Route:
        """Choose the ``top_k`` experts of each row of ``(B, E)`` and renormalise their weights."""
        weights, experts = probabilities.topk(min(top_k, probabilities.shape[1]), dim=1)
        confidence = weights[:, 0]
        return Route(
            experts=experts,
            weights=weights / weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny),
            probabilities=probabilities,
            confidence=confidence,
            abstained=confidence < abstain_below,
        )


class Router(ABC):
    """Chooses experts for a batch.

    ``layers`` names the hidden states it reads, so that the caller runs the base no deeper than needed.
    """

    layers: tuple[int, ...] = ()

    @abstractmethod
    def fit(self, inputs: Sequence[RouterInput], targets: Tensor, *, generator: torch.Generator, **data: Any) -> None:
        """Learn from batches and the index of each row's expert, ``(N,)`` over all batches in order."""

    @abstractmethod
    def route(self, batch: RouterInput) -> Route:
        """Return the route of every row; row alone = row in a batch, and padding changes nothing."""

    @abstractmethod
    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return JSON options and tensors from which ``restore`` rebuilds an equal router."""

    @classmethod
    @abstractmethod
    def restore(cls, options: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Router:
        """Rebuild a router from what ``state`` returned."""


routers: Registry[type[Router]] = Registry("router", "dynamorouter.routing")
