"""Confidence that means what it says (Guo et al., 2017, "On Calibration of Modern Neural Networks").

Letters: N rows, E experts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
_RANGE = (-5.0, 5.0)
"""Natural logarithms of the lowest and the highest temperature that is tried."""


def ece(probabilities: Tensor, targets: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error of ``(N, E)`` against ``(N,)``, between 0 and 1.

    Rows are put into ``bins`` equally wide bins of their highest probability; the gaps between mean
    confidence and accuracy are averaged, weighted by the rows in each bin.
    """
    if targets.numel() == 0:
        return 0.0
    confidence, chosen = probabilities.double().max(dim=1)
    hit = chosen.eq(targets.to(chosen.device)).double()
    place = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64, device=hit.device).index_add_(0, place, confidence - hit)
    return float(gaps.abs().sum() / targets.numel())


def negative_log_likelihood(logits: Tensor, targets: Tensor, temperature: float) -> float:
    """Return the mean negative log likelihood in nats of ``(N, E)`` logits divided by ``temperature``."""
    return float(torch.nn.functional.cross_entropy(logits.double() / temperature, targets.to(logits.device)))


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the temperature that minimises the negative log likelihood of held-out rows.

    A golden-section search over its logarithm: the likelihood is concave in the inverse temperature, so
    there is one minimum and no derivative is needed.
    """
    low, high = _RANGE
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left = negative_log_likelihood(logits, targets, math.exp(left))
    at_right = negative_log_likelihood(logits, targets, math.exp(right))
    while high - low > 1e-5:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = negative_log_likelihood(logits, targets, math.exp(left))
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = negative_log_likelihood(logits, targets, math.exp(right))
    return math.exp((low + high) / 2)


def better_temperature(logits: Tensor, targets: Tensor, current: float) -> float:
    """Return the fitted temperature, or ``current`` where fitting would raise the calibration error.

    On rows that are all routed rightly the likelihood alone would push the temperature to its lower end and
    every confidence to one; the search is then left out, since it says nothing about the rows to come.
    """
    if bool(logits.argmax(dim=1).eq(targets.to(logits.device)).all()):
        return current
    fitted = fit_temperature(logits, targets)
    before = ece((logits.double() / current).softmax(dim=1), targets)
    after = ece((logits.double() / fitted).softmax(dim=1), targets)
    return fitted if after <= before else current
