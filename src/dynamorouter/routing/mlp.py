"""The task router: an MLP over pooled hidden states of the trunk, trained on the rows of every expert.

A text's task is best read from the lower middle of an encoder (layer by layer probing: Tenney et al., 2019, "BERT
Rediscovers the Classical NLP Pipeline"), so several layers are pooled and joined. The mean tells what the words are
about; the last token adds, undiluted, how long the row is and whether it came as a pair. The logits are calibrated by
one temperature (Guo et al., 2017).

Letters: B batch, F features, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cross_entropy

from dynamorouter.routing.nets import RouterModule
from dynamorouter.routing.neural import NeuralRouter
from dynamorouter.routing.pooling import check_pooling
from dynamorouter.routing.registry import ATTENTION, poolings, routers


@routers.register("mlp")
@dataclass(kw_only=True, eq=False)
class TaskMLP(NeuralRouter):
    """Chooses experts with an MLP over pooled hidden states; its options are those of ``NeuralRouter``.

    Args:
        pooling: ``mean`` of the tokens, ``cls`` (the first token), ``last`` (the last one), ``mean_cls`` or
            ``mean_last`` (both, joined), or ``attention`` with learned queries, where batches are kept as given.
        hidden: width of the hidden layer; 0 for a linear classifier.

    Raises:
        RouterError: an option is out of range.
    """

    pooling: str = "mean_cls"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pooling(self.pooling, (ATTENTION, *poolings))

    def score_and_loss(
        self, module: RouterModule, features: Tensor, targets: Tensor, scores: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the logits ``(B, E)`` and the mean cross-entropy of the experts; ``scores`` are not used."""
        logits = module.classify(features)
        return logits, cross_entropy(logits, targets)
