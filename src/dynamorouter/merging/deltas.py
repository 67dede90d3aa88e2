"""Experts' changes to a layer, kept as factors, with linear algebra on cores no larger than the sum of their ranks.

All experts' factors of a layer, scaling folded in, are put side by side in float64 and reduced by QR: every expert's
change is then ``left @ core @ right`` with the same orthonormal ``left`` and ``right``, so that sums, inner products
and singular values are those of the cores. Dense matrices are built only where a method needs entries.

Letters: D in, O out, E experts, R rank of an expert, P and Q width of the experts' joint span.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from dynamorouter.errors import MergeError
from dynamorouter.model.lora.factors import Factors


@dataclass(frozen=True, slots=True)
class LowRank:
    """A change to a layer, ``left @ core @ right``.

    Attributes:
        left: ``(O, P)``.
        core: ``(P, Q)``.
        right: ``(Q, D)``.
        orthonormal: whether the columns of ``left`` and the rows of ``right`` are orthonormal.
        lost: squared norm that an earlier truncation has left out already.
    """

    left: Tensor
    core: Tensor
    right: Tensor
    orthonormal: bool = True
    lost: float = 0.0

    def dense(self) -> Tensor:
        """Return the change as ``(O, D)``."""
        return self.left @ self.core @ self.right

    def reduced(self) -> LowRank:
        """Return the same change with orthonormal sides."""
        if self.orthonormal:
            return self
        left, upper = torch.linalg.qr(self.left)
        right, lower = torch.linalg.qr(self.right.T)
        return LowRank(left, upper @ self.core @ lower.T, right.T, lost=self.lost)


Delta = LowRank | Tensor
"""A change to a layer: factors, or dense ``(O, D)``."""


@dataclass(frozen=True, slots=True)
class Span:
    """The experts' joint span of one layer; expert ``e`` changes it by ``left @ cores[e] @ right``.

    Attributes:
        left: orthonormal columns ``(O, P)``.
        cores: ``(E, P, Q)``.
        right: orthonormal rows ``(Q, D)``.
    """

    left: Tensor
    cores: Tensor
    right: Tensor

    def delta(self, core: Tensor) -> LowRank:
        """Return the change that a core ``(P, Q)`` stands for."""
        return LowRank(self.left, core, self.right)


@final
class LayerDeltas:
    """What each of E experts changes in one layer; an expert that leaves the layer alone has rank 0 there.

    Args:
        layer: the layer's name in the base.
        experts: names.
        factors: of each expert; ``None`` where it leaves the layer alone.

    Raises:
        MergeError: the experts' factors are not of one shape, or hold something that is no number.
    """

    def __init__(self, layer: str, experts: Sequence[str], factors: Sequence[Factors | None]) -> None:
        self.layer = layer
        self.experts = tuple(experts)
        shapes = {
            name: (pair.b.shape[0], pair.a.shape[1])
            for name, pair in zip(self.experts, factors, strict=True)
            if pair is not None
        }
        if len(set(shapes.values())) != 1:
            listed = ", ".join(f"{name} {out} x {width}" for name, (out, width) in shapes.items()) or "none"
            raise MergeError(
                f"layer {layer!r} is not of one shape in all experts ({listed}); they are trained for different base "
                "models: merge those of one"
            )
        self.shape: tuple[int, int] = next(iter(shapes.values()))
        out, width = self.shape
        self.plain_a: list[Tensor] = []
        self.plain_b: list[Tensor] = []
        self.scalings: list[float] = []
        for name, pair in zip(self.experts, factors, strict=True):
            a = torch.zeros(0, width, dtype=torch.float64) if pair is None else pair.a.detach().cpu().double()
            b = torch.zeros(out, 0, dtype=torch.float64) if pair is None else pair.b.detach().cpu().double()
            scaling = 1.0 if pair is None else float(pair.scaling)
            if not (math.isfinite(scaling) and a.isfinite().all() and b.isfinite().all()):
                raise MergeError(
                    f"expert {name!r} holds NaN or infinite numbers in layer {layer!r}; its training has failed: "
                    "train it again, or leave it out"
                )
            self.plain_a.append(a)
            self.plain_b.append(b)
            self.scalings.append(scaling)

    def __len__(self) -> int:
        return len(self.experts)

    @property
    def a(self) -> list[Tensor]:
        """A of each expert, ``(R, D)``."""
        return self.plain_a

    @cached_property
    def b(self) -> list[Tensor]:
        """B of each expert with the scaling folded in, ``(O, R)``."""
        return [scaling * b for scaling, b in zip(self.scalings, self.plain_b, strict=True)]

    @property
    def ranks(self) -> list[int]:
        """The rank of each expert."""
        return [a.shape[0] for a in self.a]

    @cached_property
    def span(self) -> Span:
        """The experts' changes as cores over one orthonormal basis on either side."""
        left, upper = torch.linalg.qr(torch.cat(self.b, dim=1))
        right, lower = torch.linalg.qr(torch.cat(self.a, dim=0).T)
        triangles = zip(upper.split(self.ranks, dim=1), lower.split(self.ranks, dim=1), strict=True)
        return Span(left, torch.stack([b @ a.T for b, a in triangles]), right.T)

    def dense(self, expert: int) -> Tensor:
        """Return one expert's change as ``(O, D)``."""
        return self.b[expert] @ self.a[expert]

    def stack(self) -> Tensor:
        """Return all experts' changes as ``(E, O, D)``."""
        return torch.stack([self.dense(e) for e in range(len(self))])

    def weighted(self, weights: Tensor) -> LowRank:
        """Return the weighted sum of the experts' changes, weights being ``(E,)``."""
        span = self.span
        return span.delta(torch.einsum("e,epq->pq", weights.to(span.cores.dtype), span.cores))


@final
class Layers:
    """The layers that any of the experts changes, each made afresh when asked for, so that one is held at a time.

    Args:
        experts: name of an expert to its factors by layer.
    """

    def __init__(self, experts: Mapping[str, Mapping[str, Factors]]) -> None:
        self.experts = tuple(experts)
        self._factors = experts
        self.names = list(dict.fromkeys(layer for factors in experts.values() for layer in factors))

    def __getitem__(self, layer: str) -> LayerDeltas:
        return LayerDeltas(layer, self.experts, [factors.get(layer) for factors in self._factors.values()])

    def __iter__(self) -> Iterator[LayerDeltas]:
        return (self[layer] for layer in self.names)

    def __len__(self) -> int:
        return len(self.names)
