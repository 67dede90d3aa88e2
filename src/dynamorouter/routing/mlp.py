"""The task router: an MLP over pooled hidden states of the trunk, trained on the rows of every expert.

A text's task is best read from the lower middle of an encoder (layer by layer probing: Tenney et al., 2019, "BERT
Rediscovers the Classical NLP Pipeline"), so several layers are pooled and joined. The mean tells what the words are
about; the last token adds, undiluted, how long the row is and whether it came as a pair. The logits are calibrated by
one temperature (Guo et al., 2017).

Letters: B batch, F features, E experts.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from dynamorouter.routing.nets import RouterModule
from dynamorouter.routing.neural import NeuralRouter
from dynamorouter.routing.registry import routers


@routers.register("mlp")
class TaskMLP(NeuralRouter):
    """Chooses experts with an MLP over pooled hidden states; its options are ``NeuralOptions``.

    Batches that ``attention`` pools with learned queries are kept as given while it is fitted.
    """

    def score_and_loss(
        self, module: RouterModule, features: Tensor, targets: Tensor, scores: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the logits ``(B, E)`` and the mean cross-entropy of the experts; ``scores`` are not used."""
        logits = module.classify(features)
        return logits, cross_entropy(logits, targets)
