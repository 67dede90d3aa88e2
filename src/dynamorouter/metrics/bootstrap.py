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
class Difference:
    """A difference between two contestants on the same rows.

    Attributes:
        value: first minus second.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: float
    low: float
    high: float


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
    values = np.concatenate([reduce(counts @ rows) for counts in _counts(len(rows), seed, resamples)])
    return _interval(values, level)


def bootstrap_difference(
    first: Array, second: Array, reduce: Reduce, *, seed: int, resamples: int = 1000, level: float = 0.95
) -> Difference:
    """Return the difference of a metric between two contestants, with a paired percentile interval.

    Args:
        first: what the metric's ``row`` returned for the first contestant, ``(N, K)``.
        second: the same rows for the second, ``(N, K)``.
        reduce: the metric's ``reduce``.
        seed: of the resampling; each resample draws the same rows for both.
        resamples: how many.
        level: share of the resamples inside the interval.

    Raises:
        ValueError: there are no rows, or not the same number of them.
    """
    if first.shape != second.shape:
        raise ValueError(f"paired rows must be the same items, got shapes {first.shape} and {second.shape}")
    counts = _counts(len(first), seed, resamples)
    values = np.concatenate([reduce(drawn @ first) - reduce(drawn @ second) for drawn in counts])
    low, high = _interval(values, level)
    return Difference(float(reduce(first.sum(axis=0)) - reduce(second.sum(axis=0))), low, high)


def _counts(rows: int, seed: int, resamples: int) -> Iterator[Array]:
    """Yield how often each row is drawn, ``(some, N)``, until all resamples are drawn."""
    if rows == 0:
        raise ValueError("a bootstrap needs at least one row")
    generator = np.random.default_rng(seed)
    share = np.full(rows, 1.0 / rows)
    step = max(1, _CELLS // rows)
    for start in range(0, resamples, step):
        yield generator.multinomial(rows, share, size=min(step, resamples - start)).astype(np.float64)


def _interval(values: Array, level: float) -> list[float]:
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return [float(low), float(high)]
