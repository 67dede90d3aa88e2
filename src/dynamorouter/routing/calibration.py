"""Confidence that means what it says (Guo et al., 2017, "On Calibration of Modern Neural Networks").

Letters: N rows, E experts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynamorouter.metrics.routing import expected_calibration_error

_RANGE = (-5.0, 5.0)
"""Natural logarithms of the lowest and the highest temperature that is tried."""


def ece(probabilities: Tensor, targets: Tensor) -> float:
    """Return the expected calibration error of ``(N, E)`` against ``(N,)``, between 0 and 1; 0 of no rows."""
    if targets.numel() == 0:
        return 0.0
    confidence, chosen = probabilities.double().max(dim=1)
    right = chosen.eq(targets.to(chosen.device))
    return expected_calibration_error(right.cpu().numpy(), confidence.cpu().numpy())


def negative_log_likelihood(logits: Tensor, targets: Tensor, temperature: float) -> float:
    """Return the mean negative log likelihood in nats of ``(N, E)`` logits divided by ``temperature``."""
    return float(torch.nn.functional.cross_entropy(logits.double() / temperature, targets.to(logits.device)))


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the temperature that minimises the negative log likelihood of held-out rows.

    Sought over its logarithm by Brent's method: the likelihood is concave in the inverse temperature, so
    there is one minimum and no derivative is needed.
    """
    from scipy.optimize import minimize_scalar

    best = minimize_scalar(
        lambda logarithm: negative_log_likelihood(logits, targets, math.exp(logarithm)),
        bounds=_RANGE,
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(best.x)


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
