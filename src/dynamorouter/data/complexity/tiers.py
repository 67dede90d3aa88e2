"""Tiers of complexity: from scores or features to the index of a tier, the simplest being 0.

Three ways: fixed thresholds of the score, quantiles of the training rows' scores, or clusters of the training rows'
standardised features (Lloyd, 1982), ordered by their mean score. None of them sees a held-out row or a response.

Letters: N rows, F features, E tiers.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamorouter.data.complexity.config import Method
from dynamorouter.data.complexity.features import NAMES
from dynamorouter.errors import ConfigError, DataError

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tiers:
    """A rule that gives each row a tier.

    Attributes:
        method: how it was made.
        cuts: of the score, ascending; a score on a cut belongs above it. Empty for clusters.
        centres: of the clusters in standardised features, in ascending order of mean score ``(E, F)``.
        mean: of the features ``(F,)``.
        std: of the features ``(F,)``.
    """

    method: Method
    cuts: tuple[float, ...] = ()
    centres: tuple[tuple[float, ...], ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.centres) or len(self.cuts) + 1

    def assign(self, features: Array, scores: Array) -> NDArray[np.int64]:
        """Return the tier of each row, ``(N,)``, from features ``(N, F)`` and scores ``(N,)``."""
        if self.method != "kmeans":
            return np.searchsorted(np.array(self.cuts), scores, side="right").astype(np.int64)
        standardised = (features - np.array(self.mean)) / np.array(self.std)
        gaps = ((standardised[:, None, :] - np.array(self.centres)[None]) ** 2).sum(axis=2)  # (N, 1, F) - (1, E, F)
        return np.asarray(gaps.argmin(axis=1), dtype=np.int64)

    def to_json(self) -> dict[str, Any]:
        """Return the rule as plain JSON values."""
        if self.method != "kmeans":
            return {"method": self.method, "cuts": list(self.cuts)}
        places: dict[str, Any] = {"mean": list(self.mean), "std": list(self.std)}
        return {"method": self.method, "features": list(NAMES), "centres": [list(c) for c in self.centres], **places}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Tiers:
        """Read what ``to_json`` returned."""
        return Tiers(
            values["method"],
            tuple(values.get("cuts", ())),
            tuple(tuple(centre) for centre in values.get("centres", ())),
            tuple(values.get("mean", ())),
            tuple(values.get("std", ())),
        )


def fit_tiers(
    method: Method,
    features: Array,
    scores: Array,
    *,
    count: int,
    thresholds: Sequence[float] = (0.3, 0.7),
    quantiles: Sequence[float] | None = None,
    seed: int = 0,
) -> Tiers:
    """Make the rule from training rows.

    Args:
        method: ``thresholds``, ``quantile`` or ``kmeans``.
        features: of the training rows, ``(N, F)``.
        scores: of the training rows, ``(N,)``.
        count: tiers wanted.
        thresholds: of the score, ascending, one fewer than tiers.
        quantiles: shares of the rows below each cut, ascending; ``None`` for tiers of the same size.
        seed: of the clusters' first centres.

    Raises:
        ConfigError: there are not as many thresholds or quantiles as cuts, or they do not ascend.
        DataError: the rows cannot be parted that way.
    """
    if method == "thresholds":
        return Tiers(method, _ascending("thresholds", thresholds, count))
    if method == "quantile":
        shares = [(i + 1) / count for i in range(count - 1)] if quantiles is None else list(quantiles)
        cuts = tuple(float(np.quantile(scores, share)) for share in _ascending("quantiles", shares, count))
        if len(set(cuts)) < len(cuts):
            raise DataError(
                f"the scores of {len(scores)} rows cannot be parted at quantiles {shares}: {len(set(cuts))} different "
                "cuts are left; use fewer tiers, or other weights"
            )
        return Tiers(method, cuts)
    return _clusters(features, scores, count, seed)


def _clusters(features: Array, scores: Array, count: int, seed: int) -> Tiers:
    from sklearn.cluster import KMeans

    mean, std = features.mean(axis=0), features.std(axis=0)
    std = np.where(std < 1e-9, 1.0, std)
    standardised = (features - mean) / std
    if len(np.unique(standardised, axis=0)) < count:
        raise DataError(f"{len(features)} rows differ in too little for {count} clusters; give more rows")
    kmeans = KMeans(n_clusters=count, n_init=10, random_state=seed).fit(standardised)
    order = np.argsort([scores[kmeans.labels_ == i].mean() for i in range(count)])
    centres = tuple(tuple(map(float, kmeans.cluster_centers_[i])) for i in order)
    return Tiers("kmeans", (), centres, tuple(map(float, mean)), tuple(map(float, std)))


def _ascending(name: str, values: Sequence[float], count: int) -> tuple[float, ...]:
    cuts = tuple(float(value) for value in values)
    if len(cuts) != count - 1 or any(a >= b for a, b in itertools.pairwise(cuts)):
        raise ConfigError(
            f"complexity.{name} is {list(cuts)}, but {count} tiers need {count - 1} ascending cuts; give as many"
        )
    return cuts
