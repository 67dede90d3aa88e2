"""Percentile bootstrap over rows, from sums alone (Efron, 1979).

Letters: N rows, K sums per row. Because a metric is a function of sums over rows, a resample is a vector of counts,
and all resamples are one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Reduce = Callable[[Array], Array]
"""From sums ``(..., K)`` to values ``(...)``."""

_CELLS = 20_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and where it lies.

    Attributes:
        value: measured.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Return plain JSON values."""
        return {"value": self.value, "low": self.low, "high": self.high}


def bootstrap_ci(rows: Array, reduce: Reduce, *, seed: int, resamples: int = 1000, level: float = 0.95) -> list[float]:
    """Return the percentile interval ``[low, high]`` of a metric.

    Args:
        rows: what the metric's ``row`` returned for each row, ``(N, K)``.
        reduce: the metric's ``reduce``.
        seed: of the resampling.
        resamples: how many.
        level: share of the resamples inside the interval.

    Raises:
        ValueError: there are no rows.
    """
    return list(
        percentiles(np.concatenate([reduce(draws @ rows) for draws in _draws(len(rows), seed, resamples)]), level)
    )


def bootstrap_difference(
    arm: Array, reference: Array, reduce: Reduce, *, seed: int, resamples: int = 1000, level: float = 0.95
) -> Interval:
    """Return how much better an arm is than a reference by a metric, with a paired percentile interval.

    Args:
        arm: what the metric's ``row`` returned for each row, ``(N, K)``.
        reference: the same for the reference's answers to the same rows, ``(N, K)``.
        reduce: the metric's ``reduce``.
        seed: of the resampling; each resample draws the same rows for both.
        resamples: how many.
        level: share of the resamples inside the interval.

    Raises:
        ValueError: there are no rows, or not the same number of them.
    """
    if arm.shape != reference.shape:
        raise ValueError(f"paired rows must be the same items, got shapes {arm.shape} and {reference.shape}")
    differences = [reduce(draws @ arm) - reduce(draws @ reference) for draws in _draws(len(arm), seed, resamples)]
    low, high = percentiles(np.concatenate(differences), level)
    return Interval(float(reduce(arm.sum(axis=0)) - reduce(reference.sum(axis=0))), low, high)


def _draws(rows: int, seed: int, resamples: int) -> Iterator[Array]:
    """Yield how often each row is drawn, ``(some, N)``, until all resamples are drawn."""
    if rows == 0:
        raise ValueError("a bootstrap needs at least one row")
    generator = np.random.default_rng(seed)
    share = np.full(rows, 1.0 / rows)
    step = max(1, _CELLS // rows)
    for start in range(0, resamples, step):
        yield generator.multinomial(rows, share, size=min(step, resamples - start)).astype(np.float64)


def percentiles(values: Array, level: float) -> tuple[float, float]:
    """Return the ends between which the share ``level`` in the middle of resampled values lies."""
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return float(low), float(high)
