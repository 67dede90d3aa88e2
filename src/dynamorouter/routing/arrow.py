"""Arrow: zero-shot routing by the experts' own weights.

Follows Ostapenko et al., 2024, "Towards Modular LLMs by Building and Re-Using a Library of LoRAs". An expert's
prototype is the direction of the input to which its update ``B A`` responds most: the top right singular vector.
A token's affinity to an expert is the absolute cosine of its hidden state to the prototype, since a singular vector
has no sign. The paper routes every token in every layer; here a row has one route, so its tokens are averaged.

Letters: B batch, S positions, D width, O out, R rank, E experts, P prototypes of one expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dynamorouter.errors import RouterError, one_of, suggest
from dynamorouter.routing.base import Need, RouterData, RouterInput
from dynamorouter.routing.learned import ScoringRouter
from dynamorouter.routing.pooling import layer_states, masked_mean
from dynamorouter.routing.registry import routers
from dynamorouter.utils.options import Rate, Size

REDUCTIONS = ("max", "mean")


def prototype(a: Tensor, b: Tensor) -> Tensor:
    """Return the top right singular vector of ``b @ a`` without forming it.

    With ``b = Q_b R_b`` and ``a.T = Q_a R_a`` the product is ``Q_b (R_b R_a.T) Q_a.T``: the small inner matrix of
    ``(R, R)`` holds all singular values, and ``Q_a`` carries its right vectors back. In float64.

    Args:
        a: down projection, ``(R, D)``.
        b: up projection, ``(O, R)``.

    Returns:
        A vector of unit length ``(D,)``, float32, whose largest component is positive; zeros for a zero update.

    Raises:
        RouterError: the shapes do not fit.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise RouterError(
            f"factors of shapes {tuple(a.shape)} and {tuple(b.shape)} make no update; give a as (R, D) and b as (O, R)"
        )
    q_a, r_a = torch.linalg.qr(a.double().T)
    _, r_b = torch.linalg.qr(b.double())
    _, values, right = torch.linalg.svd(r_b @ r_a.T)
    if not values.numel() or float(values[0]) == 0.0:
        return torch.zeros(a.shape[1], device=a.device)
    vector: Tensor = q_a @ right[0]
    sign = vector[vector.abs().argmax()].sign()
    return torch.mul(vector, sign).float()


@routers.register("arrow")
@dataclass(kw_only=True, eq=False)
class Arrow(ScoringRouter):
    """Softmax over the experts' affinities: ``|cos(h, v)|`` per token, averaged over the row's tokens.

    Args:
        layer: the layer whose hidden states enter the projections that the prototypes come from.
        reduction: ``max`` or ``mean`` over the P prototypes of an expert.
        temperature: of the softmax over affinities; ``calibrate`` fits it.
        standardise: bring each row's affinities to mean zero and deviation one over the experts first.
        top_k: experts per row.
        abstain_below: a confidence below this marks the row as abstained.

    Raises:
        RouterError: an option is out of range.
    """

    needs: ClassVar[tuple[Need, ...]] = ("prototypes",)

    layer: Size = 3
    reduction: str = "max"
    temperature: Rate = 1.0
    standardise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduction not in REDUCTIONS:
            raise RouterError(
                f"unknown reduction {self.reduction!r}{suggest(self.reduction, REDUCTIONS)}; "
                f"allowed: {one_of(REDUCTIONS)}"
            )
        self.layers = (self.layer,)

    @classmethod
    def from_prototypes(cls, prototypes: Tensor, **options: Any) -> Self:
        """Build a router from the prototypes of all experts, ``(E, P, D)``.

        Raises:
            RouterError: they have another number of dimensions, or an option is out of range.
        """
        router = cls(**options)
        router._set(prototypes)
        return router

    def fit(self, data: RouterData) -> None:
        """Take the experts' prototypes ``(E, P, D)``; no example is read.

        Raises:
            RouterError: there are none, or not as many as experts.
        """
        if data.prototypes is None:
            raise RouterError(
                "the arrow router learns nothing from examples; give fit the experts' prototypes=(E, P, D)"
            )
        self._set(data.prototypes)
        if data.experts is not None and data.experts != data.prototypes.shape[0]:
            raise RouterError(
                f"there are {data.experts} experts, but prototypes of {data.prototypes.shape[0]}; give each one"
            )

    def _set(self, prototypes: Tensor) -> None:
        if prototypes.ndim != 3 or 0 in prototypes.shape:
            raise RouterError(f"prototypes have shape {tuple(prototypes.shape)}; give (E, P, D), none of them 0")
        self.learned = {"prototypes": normalize(prototypes.detach().float(), dim=2)}

    def logits(self, batch: RouterInput) -> Tensor:
        """Return each expert's affinity before the temperature, ``(B, E)``."""
        prototypes = self.need("prototypes")
        experts, directions, width = prototypes.shape
        states = layer_states(batch, self.layer).float()
        length = torch.linalg.vector_norm(states, dim=2, keepdim=True).clamp_min(torch.finfo(states.dtype).tiny)
        cosine = (states @ prototypes.view(experts * directions, width).T).abs() / length  # (B, S, E * P)
        per_token = cosine.unflatten(2, (experts, directions))  # (B, S, E, P)
        scores = per_token.amax(dim=3) if self.reduction == "max" else per_token.mean(dim=3)
        means = masked_mean(scores, batch.mask)  # (B, S, E) -> (B, E)
        if not self.standardise:
            return means
        centred = means - means.mean(dim=1, keepdim=True)
        return centred / centred.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
