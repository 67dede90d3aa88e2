"""Routers without training: class centroids and nearest neighbours in the space of pooled hidden states.

Centroids follow prototypical networks (Snell et al., 2017, "Prototypical Networks for Few-shot Learning"); the
neighbours vote by similarity (Dudani, 1976, "The Distance-Weighted k-Nearest-Neighbor Rule").

Letters: N examples, B batch, F features, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from dynamorouter.errors import RouterError
from dynamorouter.routing.base import Route, RouterData, RouterInput
from dynamorouter.routing.learned import FittedRouter, ScoringRouter
from dynamorouter.routing.pooling import check_layers, check_pooling, pooled, pooled_all, statistics
from dynamorouter.routing.registry import poolings, routers
from dynamorouter.utils.options import Count, Rate


def sample_per_class(targets: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Return sorted positions of at most ``limit`` rows of each expert, drawn with ``generator``."""
    chosen = []
    for expert in sorted(set(targets.tolist())):
        rows = targets.eq(expert).nonzero().squeeze(1).cpu()
        order = torch.randperm(len(rows), generator=generator, device=generator.device).cpu()
        chosen.append(rows[order[:limit]])
    return torch.cat(chosen).sort().values


@dataclass(kw_only=True, eq=False)
class _Examples(FittedRouter):
    """Examples as standardised pooled features of unit length; cosine is then a product.

    Args:
        layers: the layers that are pooled and joined.
        pooling: ``mean``, ``cls``, ``last``, ``mean_cls`` or ``mean_last``.
        examples: of each expert, at most.
        temperature: of the softmax over cosines.
    """

    layers: tuple[int, ...] = (0, 1, 2, 3)
    pooling: str = "mean"
    examples: Count = 32
    temperature: Rate = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.layers = check_layers(self.layers)
        check_pooling(self.pooling, poolings)

    def keep_examples(self, data: RouterData) -> None:
        """Learn statistics from all rows, and keep ``features`` ``(n, F)`` and ``votes`` ``(n, E)`` of a few."""
        rows = sample_per_class(data.targets, self.examples, data.generator)
        features = pooled_all(data.inputs, self.layers, self.pooling)
        mean, std = statistics(features)
        self.learned = {"mean": mean, "std": std}
        self.learned["features"] = self._unit(features[rows.to(features.device)])
        self.learned["votes"] = one_hot(data.targets.cpu()[rows], data.count_experts()).to(features)

    def features(self, batch: RouterInput) -> Tensor:
        """Return the features of a batch, ``(B, F)``."""
        with torch.no_grad():
            return self._unit(pooled(batch, self.layers, self.pooling))

    def _unit(self, features: Tensor) -> Tensor:
        return normalize((features - self.need("mean")) / self.need("std"), dim=1)


@routers.register("centroids")
@dataclass(kw_only=True, eq=False)
class Centroids(_Examples, ScoringRouter):
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

    temperature: Rate = 0.1

    def fit(self, data: RouterData) -> None:
        """Average the features of a few examples of each expert; every expert needs one.

        Raises:
            RouterError: an expert has no example.
        """
        count = data.count_experts()
        missing = sorted(set(range(count)) - set(data.targets.tolist()))
        if missing:
            raise RouterError(
                f"experts {missing} have no example; give at least one row of each of the {count} experts"
            )
        self.keep_examples(data)
        votes, features = self.learned.pop("votes"), self.learned.pop("features")
        self.learned["centroids"] = normalize(votes.T @ features, dim=1)

    def logits(self, batch: RouterInput) -> Tensor:
        """Return the cosine to each centroid, ``(B, E)``."""
        return self.features(batch) @ self.need("centroids").T


@routers.register("knn")
@dataclass(kw_only=True, eq=False)
class NearestNeighbours(_Examples):
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

    k: Count = 15
    examples: Count = 1000

    def fit(self, data: RouterData) -> None:
        """Store the features and the experts of at most ``examples`` rows per expert."""
        data.count_experts()
        self.keep_examples(data)

    def route(self, batch: RouterInput) -> Route:
        """Return the route of every row (see ``Router.route``)."""
        nearest, rows = (self.features(batch) @ self.need("features").T).topk(
            min(self.k, len(self.need("features"))), dim=1
        )
        weights = (nearest / self.temperature).softmax(dim=1)  # (B, k)
        return self.chosen(torch.einsum("bk,bke->be", weights, self.need("votes")[rows]))
