"""What a router reads and what it returns, and what a pooling is.

Letters: B batch, S positions, D width, E experts, K experts chosen per row, L layers, P vectors that a pooling joins.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from dynamorouter.errors import RouterError
from dynamorouter.utils.options import Options


@dataclass(frozen=True, slots=True)
class RouterInput:
    """A batch as a router sees it: never a task name, a template, a label or an answer.

    Attributes:
        states: hidden states by layer, ``{layer: (B, S, D)}``; layer 0 is the embeddings' output, layer i
            the output of the i-th block. Only the layers that the router names in ``layers`` are there.
            Padded positions may hold anything finite.
        mask: 1 where a position holds a token, ``(B, S)``.
        texts: the rows themselves, as (text, pair or None); used by the lexical baselines alone.
    """

    states: Mapping[int, Tensor]
    mask: Tensor
    texts: Sequence[tuple[str, str | None]]

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, index: Tensor) -> RouterInput:
        """Return the rows at ``index`` ``(n,)`` int64, copied, in that order."""
        row_index = index.to(self.mask.device)
        return RouterInput(
            states={layer: states[row_index] for layer, states in self.states.items()},
            mask=self.mask[row_index],
            texts=[self.texts[row] for row in index.tolist()],
        )


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

    def where(self, rows: Tensor, other: Route) -> Route:
        """Take the rows marked in ``(B,)`` bool from this route, and the rest from another of the same shape."""
        columns = rows[:, None]
        return Route(
            experts=torch.where(columns, self.experts, other.experts),
            weights=torch.where(columns, self.weights, other.weights),
            probabilities=torch.where(columns, self.probabilities, other.probabilities),
            confidence=torch.where(rows, self.confidence, other.confidence),
            abstained=torch.where(rows, self.abstained, other.abstained),
        )


@dataclass(frozen=True, slots=True)
class RouterData:
    """What a router is fitted on.

    Attributes:
        inputs: batches; padding may differ between them.
        targets: index of each row's expert, ``(N,)`` int64, over all batches in order.
        generator: the only source of chance.
        experts: number of experts E; ``None`` for the largest target plus one.
        complexities: of each row, ``(N,)``, NaN where it is not known; ``None`` where none is.
        prototypes: directions that each expert's update responds to, ``(E, P, D)``; for routers that need them.
        balanced: let every expert count alike, however many rows it has, where the router can.
    """

    inputs: Sequence[RouterInput]
    targets: Tensor
    generator: torch.Generator = field(kw_only=True)
    experts: int | None = field(default=None, kw_only=True)
    complexities: Tensor | None = field(default=None, kw_only=True)
    prototypes: Tensor | None = field(default=None, kw_only=True)
    balanced: bool = field(default=False, kw_only=True)

    def count_experts(self) -> int:
        """Return the number of experts E, once it is sure that every row has a target.

        Raises:
            RouterError: rows and targets differ in number, there are none, or a target is out of range.
        """
        rows = sum(len(batch) for batch in self.inputs)
        if rows != self.targets.shape[0] or rows == 0:
            raise RouterError(
                f"the router got {rows} rows and {self.targets.shape[0]} targets; "
                "give one target per row, over all batches in order, and at least one row"
            )
        low, high = int(self.targets.min()), int(self.targets.max())
        count = high + 1 if self.experts is None else self.experts
        if low < 0 or high >= count:
            raise RouterError(f"targets run from {low} to {high}, but there are {count} experts; number them from 0")
        return count


Need = Literal["prototypes"]
"""What a router may need of the experts: a field of ``RouterData`` that is filled only for those that say so."""


class Router(ABC):
    """Chooses experts for a batch.

    The keyword arguments of a router's constructor are its options. ``layers`` names the hidden states it
    reads, so that the caller runs the base no deeper than needed.
    """

    layers: tuple[int, ...] = ()
    abstain_below: float = 0.0
    """A row whose best expert is less probable is answered by none."""
    option_model: ClassVar[type[Options] | None] = None
    """The settings that the constructor takes by their names; ``None`` reads them off its annotated arguments."""
    needs: ClassVar[tuple[Need, ...]] = ()
    """What ``fit`` needs beside rows and their experts."""
    trainable: ClassVar[bool] = False
    """Whether the joint phase can train it by gradient, together with the experts (see ``GradientRouter``)."""
    is_arm: ClassVar[bool] = True
    """Whether a comparison has it as an arm of its own."""
    respects_pairs: ClassVar[bool] = True
    """Whether a system takes experts away that cannot answer a row; baselines that do not look at it are left alone."""

    @abstractmethod
    def fit(self, data: RouterData) -> None:
        """Learn from batches and the index of each row's expert.

        Raises:
            RouterError: the data do not fit this router.
        """

    @abstractmethod
    def route(self, batch: RouterInput) -> Route:
        """Return the route of every row; row alone = row in a batch, and padding changes nothing.

        Raises:
            RouterError: the router is not fitted, or the batch lacks a layer that it reads.
        """

    def route_labelled(self, batch: RouterInput, experts: Tensor) -> Route:
        """Return the route of rows whose right experts ``(B,)`` int64 are known; the oracle alone is told them."""
        return self.route(batch)

    @abstractmethod
    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return JSON options and tensors from which ``restore`` rebuilds an equal router."""

    @classmethod
    @abstractmethod
    def restore(cls, options: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild a router from what ``state`` returned."""

    def calibrate(self, inputs: Sequence[RouterInput], targets: Tensor) -> None:  # noqa: B027 - not every router has one
        """Fit the temperature on held-out batches; a router without a temperature stays as it is."""

    def grown(self, data: RouterData, *, keep: Sequence[int]) -> Self | None:
        """Return a router with further experts that routes among the old ones as this one does.

        Args:
            data: rows of old experts, which are numbered in the order of ``keep``, and of new ones after them.
            keep: old experts that stay, by this router's own index.

        Returns:
            A new router, or ``None`` where one of this kind can only be fitted anew.
        """
        return None

    def to(self, device: torch.device | str) -> Self:
        """Move the router's tensors to ``device`` and return it; a router without tensors stays as it is."""
        return self


class GradientRouter(Router):
    """A router that can be trained by gradient together with the experts (see ``training.joint``)."""

    trainable: ClassVar[bool] = True

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The trainable part.

        Raises:
            RouterError: the router is not fitted.
        """

    @abstractmethod
    def logits(self, batch: RouterInput) -> Tensor:
        """Return the logits before any temperature, ``(B, E)``, differentiable, in the module's present mode."""

    @abstractmethod
    def losses(self, batch: RouterInput, targets: Tensor, scores: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the logits ``(B, E)`` and the router's own mean loss of a batch.

        Args:
            batch: what it reads.
            targets: index of each row's expert, ``(B,)``.
            scores: a further target of each row, ``(B,)``, NaN where it is not known; ``None`` where there is none.
        """


def require_fitted(tensor: Tensor | None, kind: str) -> Tensor:
    """Return ``tensor``, or say that the router must be fitted first.

    Raises:
        RouterError: ``tensor`` is ``None``.
    """
    if tensor is None:
        raise RouterError(f"the {kind} router is not fitted; call fit first, or load a fitted one")
    return tensor


Positions = tuple[Tensor, Tensor]
"""States ``(B, P, D)`` float32, and how often each position counts, ``(B, P)`` int64."""


@dataclass(frozen=True, slots=True)
class Pooling:
    """A way to make one vector of each row's hidden states, without parameters.

    Attributes:
        name: what it is asked for by.
        function: ``(states (B, S, D), mask (B, S)) -> (B, P * D)`` float32; padding may be on either side.
        width_factor: P, how many vectors of the states' width it joins.
        unpool: ``features (B, P * D) -> Positions``: the fewest positions that pool to the same again, so that a
            router that pools so need not keep all tokens of its rows; ``None`` where there are none.
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor]
    width_factor: int = 1
    unpool: Callable[[Tensor], Positions] | None = None

    def __call__(self, states: Tensor, mask: Tensor) -> Tensor:
        """Pool ``(B, S, D)`` with a mask ``(B, S)`` to ``(B, P * D)`` float32."""
        return self.function(states, mask)
