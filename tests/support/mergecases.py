"""Small experts for the tests of merging, and what each method needs beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dynamorouter.merging.merge import merge_factors
from dynamorouter.merging.registry import merges
from dynamorouter.merging.truncate import Output
from dynamorouter.model.lora.factors import Factors

SHAPES = {"block.0.q": (9, 12), "block.0.up": (16, 12), "block.1.q": (9, 12), "block.1.down": (12, 16)}
Factored = dict[str, dict[str, Factors]]


def make_experts(
    ranks: Mapping[str, int], *, seed: int = 0, skip: Mapping[str, Sequence[str]] | None = None
) -> Factored:
    """Draw experts of given ranks, float32, with scalings of their own; ``skip`` names layers that one leaves alone."""
    generator = torch.Generator().manual_seed(seed)
    made: Factored = {}
    for i, (name, rank) in enumerate(ranks.items()):
        shared = torch.Generator().manual_seed(seed + 100)
        made[name] = {}
        for layer, (out, width) in SHAPES.items():
            common_a, common_b = torch.randn(1, width, generator=shared), torch.randn(out, 1, generator=shared)
            a = torch.randn(rank, width, generator=generator) * torch.linspace(2, 0.5, rank)[:, None]
            b = torch.randn(out, rank, generator=generator)
            a[:1] += 2 * common_a  # something that all experts have in common
            b[:, :1] += 2 * common_b
            if layer not in (skip or {}).get(name, ()):
                made[name][layer] = Factors(a, b, 0.5 + 0.25 * i)
    return made


def dense(experts: Factored, layer: str) -> Tensor:
    """Return the experts' changes, ``(E, O, D)`` in float64: the plain reference."""
    out, width = SHAPES[layer]
    zero = Factors(torch.zeros(1, width), torch.zeros(out, 1), 1.0)
    found = [factors.get(layer, zero) for factors in experts.values()]
    return torch.stack([f.scaling * f.b.double() @ f.a.double() for f in found])


def change(factors: Factors) -> Tensor:
    """Return what factors stand for, ``(O, D)`` in float64."""
    return factors.scaling * factors.b.double() @ factors.a.double()


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

    def merge(self, experts: Factored, *, weights: Sequence[float] | None = None, **options: Any) -> dict[str, Tensor]:
        """Merge and return the changes by layer."""
        method = merges.get(self.method)
        given = {**needed(self.method, experts), **self.options, **options}
        seed = given.pop("seed", 0)
        mean = 1.0 if method.weights == "ones" else 1 / len(experts)
        vector = torch.tensor(weights or [mean] * len(experts), dtype=torch.float64)
        written, _ = merge_factors(experts, method, vector, Output(), seed=seed, options=given)
        return {layer: change(each.factors) for layer, each in written.items()}


def apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return the largest relative difference of two sets of changes over the layers."""
    assert set(one) == set(other)
    return max(float((one[k] - other[k]).norm() / other[k].norm().clamp_min(1e-12)) for k in one)
