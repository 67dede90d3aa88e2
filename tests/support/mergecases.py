"""Small experts for the tests of merging, and what each method needs beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dynamorouter.merging.registry import merges
from dynamorouter.model.lora.factors import Factors
from dynamorouter.testing import MergeContract
from dynamorouter.testing.merges import SHAPES, Factored, apart, change, make_experts

__all__ = ["SHAPES", "Case", "Factored", "apart", "change", "dense", "make_experts", "needed"]


def dense(experts: Factored, layer: str) -> Tensor:
    """Return the experts' changes, ``(E, O, D)`` in float64: the plain reference."""
    out, width = SHAPES[layer]
    zero = Factors(torch.zeros(1, width), torch.zeros(out, 1), 1.0)
    found = [factors.get(layer, zero) for factors in experts.values()]
    return torch.stack([f.scaling * f.b.double() @ f.a.double() for f in found])


def needed(method: str, experts: Factored) -> dict[str, Any]:
    """Return the data that a method needs, made up; each expert's depends on its name alone."""
    need = merges.get(method).needs
    if need in ("grams", "fisher"):
        return {need: {name: _observed(need, name) for name in experts}}
    if need is None:
        return {}
    stacks = {layer: dense(experts, layer) for layer in SHAPES}
    wanted = {layer: 0.7 * dense(make_experts({"x": 3}, seed=9), layer)[0] for layer in SHAPES}

    def distance(coefficients: Mapping[str, Tensor]) -> Tensor:
        return sum(
            ((torch.einsum("e,eod->od", c, stacks[layer]) - wanted[layer]) ** 2).mean()
            for layer, c in coefficients.items()
        )  # type: ignore[return-value]

    return {"entropy": distance} if need == "entropy" else {"objective": lambda c: float(distance(c))}


def _observed(need: str, name: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    found = {}
    for layer, (out, width) in SHAPES.items():
        if need == "fisher":
            found[layer] = torch.rand(out, width, generator=generator)
        else:
            x = torch.randn(40, width, generator=generator).double()
            found[layer] = x.T @ x / 40
    return found


@dataclass
class Case:
    """A method with options; ``plain`` are added where a law needs them."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.method, *(f"{k}={v}" for k, v in self.options.items())])

    def contract(self) -> MergeContract:
        """Return the laws of this case."""
        return MergeContract.of(
            method=merges.get(self.method),
            options=self.options,
            needed=lambda contract, experts: needed(contract.method.name, experts),
        )()

    def merge(self, experts: Factored, *, weights: Sequence[float] | None = None, **options: Any) -> dict[str, Tensor]:
        """Merge and return the changes by layer."""
        return self.contract().merge(experts, weights=weights, **options)
