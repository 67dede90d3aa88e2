"""Routers without training: class centroids and nearest neighbours in the space of pooled hidden states.

Centroids follow prototypical networks (Snell et al., 2017, "Prototypical Networks for Few-shot Learning"); the
neighbours vote by similarity (Dudani, 1976, "The Distance-Weighted k-Nearest-Neighbor Rule").

Letters: N examples, B batch, F features, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from dynamorouter.errors import RouterError
from dynamorouter.routing.base import Route, Router, RouterInput, check_choice, check_targets, require_fitted, routers
from dynamorouter.routing.calibration import better_temperature
from dynamorouter.routing.features import POOLINGS, check_layers, check_pooling, pooled, pooled_all, statistics


def few_of_each(targets: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Return sorted places of at most ``limit`` rows of each expert, drawn with ``generator``."""
    chosen = []
    for expert in sorted(set(targets.tolist())):
        rows = targets.eq(expert).nonzero().squeeze(1).cpu()
        order = torch.randperm(len(rows), generator=generator, device=generator.device).cpu()
        chosen.append(rows[order[:limit]])
    return torch.cat(chosen).sort().values


class _Space:
    """Standardised pooled features of unit length; cosine is then a product."""

    def __init__(self, layers: Sequence[int], pooling: str) -> None:
        self.layers = check_layers(layers)
        check_pooling(pooling, tuple(POOLINGS))
        self.pooling = pooling
        self.mean: Tensor | None = None
        self.std: Tensor | None = None

    def fit(self, inputs: Sequence[RouterInput], rows: Tensor) -> Tensor:
        """Set the statistics from all rows and return the features at ``rows``, ``(n, F)``."""
        features = pooled_all(inputs, self.layers, self.pooling)
        self.mean, self.std = statistics(features)
        return self._place(features[rows.to(features.device)], self.mean, self.std)

    def __call__(self, batch: RouterInput, kind: str) -> Tensor:
        """Return the features of a batch, ``(B, F)``."""
        mean, std = require_fitted(self.mean, kind), require_fitted(self.std, kind)
        with torch.no_grad():
            return self._place(pooled(batch, self.layers, self.pooling), mean, std)

    @staticmethod
    def _place(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return normalize((features - mean) / std, dim=1)


@routers.register("centroids")
class Centroids(Router):
    """Cosine to the mean of a few examples of each expert, through a softmax.

    Args:
        layers: the layers that are pooled and joined.
        pooling: ``mean``, ``cls``, ``last``, ``mean_cls`` or ``mean_last``.
        examples: examples per expert.
        temperature: of the softmax over cosines; ``calibrate`` fits it.
        top_k: experts per row.
        abstain_below: a confidence below this marks the row as abstained.

    Raises:
        RouterError: an option is out of range.
    """

    def __init__(
        self,
        *,
        layers: Sequence[int] = (0, 1, 2, 3),
        pooling: str = "mean",
        examples: int = 32,
        temperature: float = 0.1,
        top_k: int = 1,
        abstain_below: float = 0.0,
    ) -> None:
        check_choice(top_k, abstain_below)
        _check_positive("examples", examples)
        _check_positive("temperature", temperature)
        self._space = _Space(layers, pooling)
        self.layers = self._space.layers
        self.pooling = pooling
        self.examples = examples
        self.temperature = temperature
        self.top_k = top_k
        self.abstain_below = abstain_below
        self.centroids: Tensor | None = None

    def fit(
        self,
        inputs: Sequence[RouterInput],
        targets: Tensor,
        *,
        generator: torch.Generator,
        experts: int | None = None,
        **data: Any,
    ) -> None:
        """Average the features of a few examples of each expert; every expert needs one.

        Raises:
            RouterError: an expert has no example.
        """
        count = check_targets(inputs, targets, experts)
        missing = sorted(set(range(count)) - set(targets.tolist()))
        if missing:
            raise RouterError(
                f"experts {missing} have no example; give at least one row of each of the {count} experts"
            )
        rows = few_of_each(targets, self.examples, generator)
        features = self._space.fit(inputs, rows)
        member = one_hot(targets.cpu()[rows], count).to(features)  # (n, E)
        self.centroids = normalize(member.T @ features, dim=1)

    def logits(self, batch: RouterInput) -> Tensor:
        """Return the cosine to each centroid, ``(B, E)``."""
        return self._space(batch, "centroids") @ require_fitted(self.centroids, "centroids").T

    def route(self, batch: RouterInput) -> Route:
        """Return the route of every row (see ``Router.route``)."""
        probabilities = (self.logits(batch) / self.temperature).softmax(dim=1)
        return Route.from_probabilities(probabilities, top_k=self.top_k, abstain_below=self.abstain_below)

    def calibrate(self, inputs: Sequence[RouterInput], targets: Tensor) -> None:
        """Fit the temperature on held-out batches, unless that would raise the calibration error."""
        logits = torch.cat([self.logits(batch) for batch in inputs])
        self.temperature = better_temperature(logits, targets, self.temperature)

    def to(self, device: torch.device | str) -> Self:
        """Move the centroids to ``device`` and return the router."""
        self.centroids = require_fitted(self.centroids, "centroids").to(device)
        _move(self._space, device)
        return self

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the options, and the centroids with the statistics of the features."""
        options = {
            "layers": list(self.layers),
            "pooling": self.pooling,
            "examples": self.examples,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "abstain_below": self.abstain_below,
        }
        return options, _tensors(self._space, "centroids", centroids=self.centroids)

    @classmethod
    def restore(cls, options: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild a router from what ``state`` returned."""
        router = cls(**options)
        router.centroids = tensors["centroids"]
        router._space.mean, router._space.std = tensors["mean"], tensors["std"]
        return router


@routers.register("knn")
class NearestNeighbours(Router):
    """The k most similar stored examples vote, each with ``exp((cosine - 1) / temperature)``.

    Args:
        layers: the layers that are pooled and joined.
        pooling: ``mean``, ``cls``, ``last``, ``mean_cls`` or ``mean_last``.
        k: neighbours that vote.
        examples: stored examples per expert, at most.
        temperature: how fast a vote fades with distance; high values count every neighbour alike.
        top_k: experts per row.
        abstain_below: a confidence below this marks the row as abstained.

    Raises:
        RouterError: an option is out of range.
    """

    def __init__(
        self,
        *,
        layers: Sequence[int] = (0, 1, 2, 3),
        pooling: str = "mean",
        k: int = 15,
        examples: int = 1000,
        temperature: float = 0.1,
        top_k: int = 1,
        abstain_below: float = 0.0,
    ) -> None:
        check_choice(top_k, abstain_below)
        _check_positive("k", k)
        _check_positive("examples", examples)
        _check_positive("temperature", temperature)
        self._space = _Space(layers, pooling)
        self.layers = self._space.layers
        self.pooling = pooling
        self.k = k
        self.examples = examples
        self.temperature = temperature
        self.top_k = top_k
        self.abstain_below = abstain_below
        self.features: Tensor | None = None
        self.votes: Tensor | None = None

    def fit(
        self,
        inputs: Sequence[RouterInput],
        targets: Tensor,
        *,
        generator: torch.Generator,
        experts: int | None = None,
        **data: Any,
    ) -> None:
        """Store the features and the experts of at most ``examples`` rows per expert."""
        count = check_targets(inputs, targets, experts)
        rows = few_of_each(targets, self.examples, generator)
        self.features = self._space.fit(inputs, rows)
        self.votes = one_hot(targets.cpu()[rows], count).to(self.features)

    def route(self, batch: RouterInput) -> Route:
        """Return the route of every row (see ``Router.route``)."""
        features, votes = require_fitted(self.features, "knn"), require_fitted(self.votes, "knn")
        nearest, rows = (self._space(batch, "knn") @ features.T).topk(min(self.k, len(features)), dim=1)
        weights = (nearest / self.temperature).softmax(dim=1)  # (B, k)
        probabilities = torch.einsum("bk,bke->be", weights, votes[rows])
        return Route.from_probabilities(probabilities, top_k=self.top_k, abstain_below=self.abstain_below)

    def to(self, device: torch.device | str) -> Self:
        """Move the stored examples to ``device`` and return the router."""
        self.features = require_fitted(self.features, "knn").to(device)
        self.votes = require_fitted(self.votes, "knn").to(device)
        _move(self._space, device)
        return self

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the options, and the stored examples with the statistics of the features."""
        options = {
            "layers": list(self.layers),
            "pooling": self.pooling,
            "k": self.k,
            "examples": self.examples,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "abstain_below": self.abstain_below,
        }
        return options, _tensors(self._space, "knn", features=self.features, votes=self.votes)

    @classmethod
    def restore(cls, options: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild a router from what ``state`` returned."""
        router = cls(**options)
        router.features, router.votes = tensors["features"], tensors["votes"]
        router._space.mean, router._space.std = tensors["mean"], tensors["std"]
        return router


def _check_positive(name: str, value: float) -> None:
    if value <= 0:
        raise RouterError(f"{name} is {value}; set it above 0")


def _move(space: _Space, device: torch.device | str) -> None:
    space.mean = None if space.mean is None else space.mean.to(device)
    space.std = None if space.std is None else space.std.to(device)


def _tensors(space: _Space, kind: str, **own: Tensor | None) -> dict[str, Tensor]:
    return {name: require_fitted(value, kind) for name, value in {**own, "mean": space.mean, "std": space.std}.items()}
