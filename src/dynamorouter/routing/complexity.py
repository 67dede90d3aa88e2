"""The complexity router: from the base's hidden states of a prompt to a tier, and to the prompt's complexity.

Pooled states go through one hidden layer to a softmax over the tiers and to one sigmoid, which estimates the score
that the tiers were made of. The loss is the tiers' cross-entropy, a squared error of the estimate, and a term that
keeps the mean route of a batch near the tiers' prior, so that no expert starves. Only hidden states are read: a
parser is needed to make the targets, never to route.

Letters: B batch, F features, E tiers.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from dynamorouter.routing.base import RouterInput
from dynamorouter.routing.nets import RouterModule
from dynamorouter.routing.neural import NeuralOptions, NeuralRouter, evaluated
from dynamorouter.routing.pooling import check_pooling
from dynamorouter.routing.registry import poolings, routers
from dynamorouter.utils.options import Count, Weight


def balance_loss(probabilities: Tensor, prior: Tensor) -> Tensor:
    """Return the divergence of a batch's mean route from the prior, in nats: 0 where they are equal.

    Args:
        probabilities: of each row, ``(B, E)``.
        prior: share of each tier, ``(E,)``, sums to one.
    """
    usage = probabilities.mean(dim=0).clamp_min(torch.finfo(probabilities.dtype).tiny)
    return torch.where(prior > 0, prior * (prior.clamp_min(1e-12) / usage).log(), 0.0).sum()


def squared_error(estimates: Tensor, scores: Tensor) -> Tensor:
    """Return the mean squared error over the rows ``(B,)`` whose score is known, that is not NaN; 0 where none is."""
    has_score = ~scores.isnan()
    gaps = torch.where(has_score, estimates - scores.nan_to_num(), 0.0)
    return gaps.square().sum() / has_score.sum().clamp_min(1)


class TierRouterOptions(NeuralOptions):
    """What the complexity router takes."""

    pooling: str = "mean_sum"
    """Any pooling but the learned one."""
    hidden: Count = 256
    """Width of the hidden layer."""
    complexity_weight: Weight = 0.1
    """Weight of the squared error of the complexity."""
    balance_weight: Weight = 0.1
    """Weight of the divergence of the mean route from the prior."""


@routers.register("complexity")
class TierRouter(NeuralRouter):
    """Chooses the expert of a tier, and estimates the complexity that the tiers were made of.

    ``fit`` takes the complexities that the tiers were made of; without them the second output is not trained. The
    prior is the share of each tier in training.

    Args:
        **options: ``TierRouterOptions``, by name.

    Raises:
        RouterError: an option is unknown, of the wrong type or out of range.
    """

    option_model: ClassVar[type[NeuralOptions]] = TierRouterOptions
    gauged: ClassVar[bool] = True
    is_arm: ClassVar[bool] = False  # its experts are tiers, and those of a comparison are tasks
    network: TierRouterOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        check_pooling(self.pooling, poolings)

    def score_and_loss(
        self, module: RouterModule, features: Tensor, targets: Tensor, scores: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the logits ``(B, E)`` and the mean loss of pooled rows: tier, complexity where known, balance."""
        logits, estimates = module.read(features)
        assert estimates is not None and module.prior is not None
        loss = functional.cross_entropy(logits, targets)
        if scores is not None:
            loss = loss + self.network.complexity_weight * squared_error(estimates, scores)
        return logits, loss + self.network.balance_weight * balance_loss(logits.softmax(dim=1), module.prior)

    def complexity(self, batch: RouterInput) -> Tensor:
        """Return the estimated complexity of each row, ``(B,)``, between 0 and 1."""
        with evaluated(self.module) as module:
            estimates = module.read(module.pool(batch))[1]
        assert estimates is not None
        return estimates
