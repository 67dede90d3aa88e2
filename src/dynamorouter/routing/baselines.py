"""Routers that learn nothing from the input: the upper and the lower ends of every comparison.

``oracle`` is told the right expert, ``static`` always takes one, ``random`` draws one by the text, ``uniform``
mixes all. Letters: B batch, E experts, K experts chosen per row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from dynamorouter.errors import RouterError
from dynamorouter.routing.base import Route, Router, RouterData, RouterInput, require_fitted
from dynamorouter.routing.registry import routers


class _Counted(Router):
    """What the baselines share: all that they keep is the number of experts."""

    count: int = 0
    respects_pairs: ClassVar[bool] = False

    def fit(self, data: RouterData) -> None:
        """Take the number of experts."""
        self.count = data.count_experts()

    def fitted(self) -> int:
        """Return the number of experts.

        Raises:
            RouterError: the router is not fitted.
        """
        if not self.count:
            raise RouterError(f"the {type(self).__name__.lower()} router is not fitted; call fit first")
        return self.count

    def options(self) -> dict[str, Any]:
        """Return the constructor's options."""
        return {}

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the options and the number of experts."""
        return self.options(), {"experts": torch.tensor(self.fitted())}

    @classmethod
    def restore(cls, options: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild a router from what ``state`` returned."""
        router = cls(**options)
        router.count = int(tensors["experts"])
        return router


@routers.register("oracle")
class Oracle(_Counted):
    """Is told the right expert of each row, and never looks at the batch for it."""

    is_arm: ClassVar[bool] = False  # it is one by another name, outside the routers

    def route(self, batch: RouterInput) -> Route:
        """Refuse to route rows whose experts are not known.

        Raises:
            RouterError: always.
        """
        raise RouterError(
            f"the oracle got {len(batch)} rows without their experts; score a system with it on rows whose tasks are "
            "known (route_labelled), or take another router"
        )

    def route_labelled(self, batch: RouterInput, experts: Tensor) -> Route:
        """Return the route that takes the experts ``(B,)`` that it is told, with full confidence.

        Raises:
            RouterError: the router is not fitted, an expert is out of range, or their number is not that of the rows.
        """
        count = self.fitted()
        if len(experts) != len(batch):
            raise RouterError(
                f"the oracle got {len(batch)} rows and the experts of {len(experts)}; name one expert per row"
            )
        if experts.numel() and (int(experts.min()) < 0 or int(experts.max()) >= count):
            raise RouterError(
                f"the oracle was told experts {int(experts.min())} to {int(experts.max())} of {count}, from 0; -1 "
                "stands for one that it was not fitted on: fit it again, or leave the rows of that expert out"
            )
        return Route.from_probabilities(one_hot(experts.to(batch.mask.device).long(), count).float())


@routers.register("random")
class Random(_Counted):
    """Draws an expert by a hash of the row's text, so that a row has the same route in every batch.

    Args:
        seed: another seed gives other routes.
        top_k: experts per row, with equal weights.

    Raises:
        RouterError: ``top_k`` is below one.
    """

    def __init__(self, *, seed: int = 0, top_k: int = 1) -> None:
        if top_k < 1:
            raise RouterError(f"top_k is {top_k}; set it to 1 or more")
        self.seed = seed
        self.top_k = top_k

    def options(self) -> dict[str, Any]:
        """Return the constructor's options."""
        return {"seed": self.seed, "top_k": self.top_k}

    def route(self, batch: RouterInput) -> Route:
        """Return the route of every row; all experts are equally probable (see ``Router.route``)."""
        count = self.fitted()
        experts_per_row = min(self.top_k, count)
        device = batch.mask.device
        experts = [self._drawn(text, pair, count)[:experts_per_row] for text, pair in batch.texts]
        return Route(
            experts=torch.tensor(experts, dtype=torch.int64, device=device).view(-1, experts_per_row),
            weights=torch.full((len(batch), experts_per_row), 1 / experts_per_row, device=device),
            probabilities=torch.full((len(batch), count), 1 / count, device=device),
            confidence=torch.full((len(batch),), 1 / count, device=device),
            abstained=torch.zeros(len(batch), dtype=torch.bool, device=device),
        )

    def _drawn(self, text: str, pair: str | None, count: int) -> list[int]:
        row = json.dumps([self.seed, text, pair]).encode()
        draws = [hashlib.sha256(b"%d " % expert + row).digest() for expert in range(count)]
        return sorted(range(count), key=draws.__getitem__)


@routers.register("static")
class Static(_Counted):
    """Always takes one expert: the one given, or the most frequent in training.

    The probabilities are the shares of the experts in training, or one for an expert that was given.

    Args:
        expert: the expert to take; the most frequent one when not given, the first of equals.

    Raises:
        RouterError: the expert is negative.
    """

    def __init__(self, *, expert: int | None = None) -> None:
        if expert is not None and expert < 0:
            raise RouterError(f"expert is {expert}; number the experts from 0")
        self.expert = expert
        self._shares: Tensor | None = None

    def fit(self, data: RouterData) -> None:
        """Count the experts of the rows.

        Raises:
            RouterError: the given expert is not among them.
        """
        self.count = data.count_experts()
        if self.expert is not None and self.expert >= self.count:
            raise RouterError(f"the static router is to take expert {self.expert} of {self.count}; number them from 0")
        if self.expert is None:
            shares = torch.bincount(data.targets.cpu(), minlength=self.count) / len(data.targets)
        else:
            shares = one_hot(torch.tensor(self.expert), self.count).float()
        self._shares = shares

    def options(self) -> dict[str, Any]:
        """Return the constructor's options."""
        return {"expert": self.expert}

    def route(self, batch: RouterInput) -> Route:
        """Return the same route for every row (see ``Router.route``)."""
        shares = require_fitted(self._shares, "static").to(batch.mask.device)
        best = shares.argmax()
        return Route(
            experts=best.expand(len(batch), 1),
            weights=shares.new_ones(len(batch), 1),
            probabilities=shares.expand(len(batch), -1),
            confidence=shares[best].expand(len(batch)),
            abstained=torch.zeros(len(batch), dtype=torch.bool, device=shares.device),
        )

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the options and the shares of the experts."""
        return self.options(), {"shares": require_fitted(self._shares, "static")}

    @classmethod
    def restore(cls, options: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild a router from what ``state`` returned."""
        router = cls(**options)
        router._shares = tensors["shares"]
        router.count = len(tensors["shares"])
        return router


@routers.register("uniform")
class Uniform(_Counted):
    """Mixes all experts with equal weights."""

    is_arm: ClassVar[bool] = False  # it is one by another name, outside the routers

    def route(self, batch: RouterInput) -> Route:
        """Return all experts for every row (see ``Router.route``)."""
        count = self.fitted()
        device = batch.mask.device
        equal = torch.full((len(batch), count), 1 / count, device=device)
        return Route(
            experts=torch.arange(count, device=device).expand(len(batch), count),
            weights=equal,
            probabilities=equal,
            confidence=torch.full((len(batch),), 1 / count, device=device),
            abstained=torch.zeros(len(batch), dtype=torch.bool, device=device),
        )
