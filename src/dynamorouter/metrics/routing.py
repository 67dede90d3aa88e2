"""How well a router chooses. Letters: N rows, E experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dynamorouter.errors import DataError
from dynamorouter.metrics.bootstrap import Array

ECE_BINS = 15


def expected_calibration_error(
    right: NDArray[np.bool_], confidence: NDArray[np.float64], *, bins: int = ECE_BINS
) -> float:
    """Return the mean gap between confidence and accuracy over bins of equal width (Guo et al., 2017).

    Args:
        right: whether each row's choice was right, ``(N,)``.
        confidence: probability of each row's choice, ``(N,)``.
        bins: how many, the i-th being ``(i/bins, (i+1)/bins]``.
    """
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(which, weights=confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(right))


def router_metrics(
    true: ArrayLike, probabilities: ArrayLike, names: Sequence[str], *, chosen: ArrayLike | None = None
) -> dict[str, Any]:
    """Return the ``router`` part of a report.

    Args:
        true: index of each row's own expert, ``(N,)``.
        probabilities: over the experts, ``(N, E)``.
        names: of the experts, in the order of the columns.
        chosen: index of each row's first expert, ``(N,)``, since not every router takes the most probable; -1, or none
            given at all, stands for the most probable.

    Returns:
        ``accuracy``, ``macro_f1`` (over the experts that occur), ``ece``, ``majority`` (share of the largest class),
        ``tasks`` (the names) and ``confusion`` (true expert by row, chosen expert by column).

    Raises:
        DataError: the shapes do not fit, or there are no rows.
    """
    from sklearn.metrics import f1_score

    targets = np.asarray(true, dtype=int)
    distributions = np.asarray(probabilities, dtype=float)
    if targets.ndim != 1 or len(targets) == 0 or distributions.shape != (len(targets), len(names)):
        raise DataError(
            f"got targets {targets.shape} and probabilities {distributions.shape} for {len(names)} experts; "
            "expected (N,) and (N, E) with at least one row"
        )
    likeliest = distributions.argmax(axis=1)
    choices = likeliest if chosen is None else np.where(np.asarray(chosen) < 0, likeliest, chosen)
    right = choices == targets
    cells = np.bincount(len(names) * targets + choices, minlength=len(names) ** 2)
    return {
        "accuracy": float(right.mean()),
        "macro_f1": float(f1_score(targets, choices, average="macro", zero_division=0)),
        "ece": expected_calibration_error(right, distributions[np.arange(len(choices)), choices]),
        "majority": float(np.bincount(targets).max() / len(targets)),
        "tasks": list(names),
        "confusion": cells.reshape(len(names), -1).tolist(),
    }


def gini(shares: Array) -> float:
    """Return the Gini coefficient of the experts' shares: 0 where all are used alike, (E - 1) / E for one alone."""
    ordered = np.sort(np.asarray(shares, dtype=np.float64))
    ranks = np.arange(1, len(ordered) + 1)
    return float((2 * ranks - len(ordered) - 1) @ ordered / (len(ordered) * ordered.sum()))
