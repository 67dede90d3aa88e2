"""The trainable part of the task router: pooling, standardisation and a small MLP.

Letters: B batch, S positions, D width, L layers, F features, H hidden, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dynamorouter.routing.base import RouterInput
from dynamorouter.routing.pooling import layer_states, masked_mean, pooled, weighted_sum, width_factor
from dynamorouter.routing.registry import ATTENTION


class AttentionPool(nn.Module):
    """Learned attention pooling: one query per layer, softmax over the unmasked positions.

    The queries start at zero, which is exactly the masked mean.

    Args:
        layers: the layers to pool, L of them.
        width: D.
    """

    def __init__(self, layers: Sequence[int], width: int) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.scale = width**-0.5
        self.queries = nn.Parameter(torch.zeros(len(self.layers), width))

    def forward(self, batch: RouterInput) -> Tensor:
        """Pool every layer and join them, ``(B, L * D)`` float32."""
        return torch.cat(
            [
                self._pool(layer_states(batch, layer), batch.mask, self.queries[i])
                for i, layer in enumerate(self.layers)
            ],
            dim=1,
        )

    def _pool(self, states: Tensor, mask: Tensor, query: Tensor) -> Tensor:
        live = mask.ne(0)
        scores = (states.float() @ query) * self.scale  # (B, S, D) @ (D,) -> (B, S)
        weights = scores.masked_fill(~live, torch.finfo(scores.dtype).min).softmax(dim=1)
        return weighted_sum(weights * live, states)  # a row without tokens gives zeros


class RouterModule(nn.Module):
    """Pooled and standardised hidden states through an MLP to one logit per expert.

    Args:
        layers: the layers that are read, L of them.
        pooling: ``attention``, or the name of a pooling without parameters.
        width: D.
        hidden: H; 0 leaves a linear classifier.
        experts: E.
        dropout: share of the hidden units, and of the input features, dropped in training.
        score_head: add a second output, one number between 0 and 1, and keep the share of each expert in training.
    """

    mean: Tensor
    inverse_std: Tensor
    prior: Tensor | None

    def __init__(
        self,
        *,
        layers: Sequence[int],
        pooling: str,
        width: int,
        hidden: int,
        experts: int,
        dropout: float = 0.0,
        score_head: bool = False,
    ) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.pooling = pooling
        features = len(self.layers) * width_factor(pooling) * width
        self.attention = AttentionPool(layers, width) if pooling == ATTENTION else None
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("inverse_std", torch.ones(features))
        self.dropout = nn.Dropout(dropout)
        self.inner = nn.Linear(features, hidden) if hidden else None
        self.out = nn.Linear(hidden or features, experts)
        self.score_head = nn.Linear(hidden or features, 1) if score_head else None
        self.register_buffer("prior", torch.full((experts,), 1.0 / experts) if score_head else None)

    def pool(self, batch: RouterInput) -> Tensor:
        """Return the pooled states before standardisation, ``(B, F)`` float32."""
        if self.attention is not None:
            pooled_states: Tensor = self.attention(batch)
            return pooled_states
        return pooled(batch, self.layers, self.pooling)

    def classify(self, features: Tensor) -> Tensor:
        """Turn pooled features ``(B, F)`` into logits ``(B, E)``, float32."""
        return self.read(features)[0]

    def read(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the logits ``(B, E)`` and, with a gauge, its number ``(B,)``, float32, of pooled ``(B, F)``."""
        with torch.autocast(device_type=features.device.type, enabled=False):
            hidden: Tensor = self.dropout((features - self.mean) * self.inverse_std)
            if self.inner is not None:
                hidden = self.dropout(nn.functional.gelu(self.inner(hidden)))
            gauged = None if self.score_head is None else self.score_head(hidden).sigmoid().squeeze(1)
            return self.out(hidden), gauged

    def forward(self, batch: RouterInput) -> Tensor:
        """Return the uncalibrated logits, ``(B, E)`` float32."""
        return self.classify(self.pool(batch))

    @torch.no_grad()
    def standardise(self, mean: Tensor, std: Tensor) -> None:
        """Set the statistics ``(F,)`` by which pooled features are standardised."""
        self.mean.copy_(mean)
        self.inverse_std.copy_(1.0 / std)

    @torch.no_grad()
    def set_prior(self, shares: Tensor) -> None:
        """Keep the share of each expert in training, ``(E,)``, where there is a place for it."""
        if self.prior is not None:
            self.prior.copy_(shares)


def base_features(module: RouterModule, batch: RouterInput) -> Tensor:
    """Return the features whose statistics standardise the input, ``(B, F)``; attention starts from the mean."""
    if module.attention is None:
        return module.pool(batch)
    return torch.cat([masked_mean(layer_states(batch, layer), batch.mask) for layer in module.layers], dim=1)
