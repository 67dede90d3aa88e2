"""What learned routers share: options as the fields of a dataclass, a choice from probabilities, a temperature.

A subclass is a dataclass of keyword options; what it has learned is tensors, which are saved and moved by their names.

Letters: B batch, E experts.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

import torch
from torch import Tensor

from dynamorouter.errors import RouterError
from dynamorouter.routing.base import Route, Router, RouterInput
from dynamorouter.routing.calibration import better_temperature
from dynamorouter.routing.options import checked_options, options_of
from dynamorouter.utils.options import Count, Share


@dataclass(kw_only=True, eq=False)
class FittedRouter(Router):
    """A router with options and learned tensors.

    Args:
        top_k: experts per row.
        abstain_below: a confidence below this marks the row as abstained.

    Raises:
        RouterError: an option is out of range.
    """

    top_k: Count = 1
    abstain_below: Share = 0.0
    learned: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.option_model is None:
            names = [option.name for option in fields(self) if option.init]
            values = {name: getattr(self, name) for name in names}
            options = checked_options(options_of(type(self)), values, kind=type(self).__name__)
            for name in names:
                setattr(self, name, getattr(options, name))

    def need(self, name: str) -> Tensor:
        """Return a learned tensor.

        Raises:
            RouterError: the router is not fitted.
        """
        if name not in self.learned:
            raise self.not_fitted()
        return self.learned[name]

    def not_fitted(self) -> RouterError:
        """Return the error for a router that is asked before it is fitted."""
        return RouterError(f"the {type(self).__name__} router is not fitted; call fit first, or load a fitted one")

    def chosen(self, probabilities: Tensor) -> Route:
        """Return the route that probabilities ``(B, E)`` lead to."""
        return Route.from_probabilities(probabilities, top_k=self.top_k, abstain_below=self.abstain_below)

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments, as JSON holds them."""
        values = {option.name: getattr(self, option.name) for option in fields(self) if option.init}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def to(self, device: torch.device | str) -> Self:
        """Move what was learned to ``device`` and return the router.

        Raises:
            RouterError: the router is not fitted.
        """
        if not self.learned:
            raise self.not_fitted()
        self.learned = {name: tensor.to(device) for name, tensor in self.learned.items()}
        return self

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the options and what was learned.

        Raises:
            RouterError: the router is not fitted.
        """
        if not self.learned:
            raise self.not_fitted()
        return self.options(), dict(self.learned)

    @classmethod
    def restore(cls, options: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild a router from what ``state`` returned."""
        router = cls(**options)
        router.learned = dict(tensors)
        return router


@dataclass(kw_only=True, eq=False)
class ScoringRouter(FittedRouter):
    """A router that scores every expert and takes the softmax at a temperature, which ``calibrate`` fits."""

    temperature: float = field(default=1.0, init=False)

    @abstractmethod
    def logits(self, batch: RouterInput) -> Tensor:
        """Return the scores before the temperature, ``(B, E)``."""

    def scores(self, batch: RouterInput) -> Tensor:
        """Return the logits as inference sees them: without gradients."""
        with torch.no_grad():
            return self.logits(batch)

    def route(self, batch: RouterInput) -> Route:
        """Return the route of every row (see ``Router.route``)."""
        return self.chosen((self.scores(batch) / self.temperature).softmax(dim=1))

    def calibrate(self, inputs: Sequence[RouterInput], targets: Tensor) -> None:
        """Fit the temperature on held-out batches, unless that would raise the calibration error."""
        logits = torch.cat([self.scores(batch) for batch in inputs])
        self.temperature = better_temperature(logits, targets, self.temperature)
