"""The laws of merge methods: each keeps those that it claims.

Letters: O out, D in, E experts, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from dynamorouter.merging.merge import merge_factors
from dynamorouter.merging.registry import LAWS, Law, Method, merges
from dynamorouter.merging.truncate import Output
from dynamorouter.model.lora.factors import Factors
from dynamorouter.testing.contract import Contract, require

SHAPES = {"block.0.q": (9, 12), "block.0.up": (16, 12), "block.1.q": (9, 12), "block.1.down": (12, 16)}
"""Out and in of the layers of the experts that are drawn."""
Factored = dict[str, dict[str, Factors]]
"""Factors by expert and layer."""
Changes = dict[str, Tensor]
"""What factors stand for, ``(O, D)`` float64 by layer."""


def make_experts(
    ranks: Mapping[str, int], *, seed: int = 0, skip: Mapping[str, Sequence[str]] | None = None
) -> Factored:
    """Draw experts of given ranks that have something in common, float32, with scalings of their own.

    Args:
        ranks: by the expert's name.
        seed: of the factors.
        skip: layers that an expert leaves alone.
    """
    generator = torch.Generator().manual_seed(seed)
    made: Factored = {}
    for i, (name, rank) in enumerate(ranks.items()):
        shared = torch.Generator().manual_seed(seed + 100)
        made[name] = {}
        for layer, (out, width) in SHAPES.items():
            common_a, common_b = torch.randn(1, width, generator=shared), torch.randn(out, 1, generator=shared)
            a = torch.randn(rank, width, generator=generator) * torch.linspace(2, 0.5, rank)[:, None]
            b = torch.randn(out, rank, generator=generator)
            a[:1] += 2 * common_a
            b[:, :1] += 2 * common_b
            if layer not in (skip or {}).get(name, ()):
                made[name][layer] = Factors(a, b, 0.5 + 0.25 * i)
    return made


def change(factors: Factors) -> Tensor:
    """Return what factors stand for, ``(O, D)`` in float64."""
    return factors.scaling * factors.b.double() @ factors.a.double()


def apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return the largest relative difference of two sets of changes over the layers."""
    require(set(one) == set(other), f"layers {sorted(one)} are merged, and {sorted(other)} wanted")
    return max(float((one[k] - other[k]).norm() / other[k].norm().clamp_min(1e-12)) for k in one)


def regauged(experts: Factored) -> Factored:
    """Write every expert as B R and R^-1 A."""
    generator = torch.Generator().manual_seed(3)
    made: Factored = {}
    for name, factors in experts.items():
        made[name] = {}
        for layer, f in factors.items():
            rank = f.a.shape[0]
            r = (torch.randn(rank, rank, generator=generator) + 3 * torch.eye(rank)).double()
            made[name][layer] = Factors(torch.linalg.solve(r, f.a.double()), f.b.double() @ r, f.scaling)
    return made


class MergeContract(Contract):
    """The laws of merge methods.

    Attributes:
        method: what ``merge_method`` made.
        options: of the method.
        tolerance: of the relative difference of two changes, for factors in float32.
    """

    method: ClassVar[Method]
    options: ClassVar[Mapping[str, Any]] = {}
    tolerance: ClassVar[float] = 1e-5

    def needed(self, experts: Factored) -> dict[str, Any]:
        """Return what the method needs beside the experts, by the name of its need; override it where that is so."""
        return {}

    def experts(self) -> Factored:
        """Return experts of different ranks, as many as the method takes."""
        return make_experts({"one": 3, "two": 2} if self.method.experts == 2 else {"one": 3, "two": 2, "three": 4})

    def merge(self, experts: Factored, *, weights: Sequence[float] | None = None, **options: Any) -> Changes:
        """Merge and return the changes by layer."""
        chosen = {**self.needed(experts), **self.options, **options}
        seed = chosen.pop("seed", 0)
        mean = 1.0 if self.method.weights == "ones" else 1 / len(experts)
        vector = torch.tensor(weights or [mean] * len(experts), dtype=torch.float64)
        merged, _ = merge_factors(experts, self.method, vector, Output(), seed=seed, options=chosen)
        return {layer: change(written.factors) for layer, written in merged.items()}

    def distance_from(self, law: Law) -> float:
        """Return how far the method is from keeping a law, relative to what it should give."""
        if law in ("one", "identical"):
            alone = make_experts({"one": 3})
            expected = {layer: change(factors) for layer, factors in alone["one"].items()}
            experts = alone if law == "one" else dict.fromkeys(self.experts(), alone["one"])
            weights = [1.0] if law == "one" else None
            return apart(self.merge(experts, weights=weights, **self.method.plain), expected)
        experts, before = self.experts(), self.merge(self.experts())
        if law == "order":
            return apart(self.merge(dict(reversed(experts.items()))), before)
        if law == "scaling":
            scaled = {n: {k: Factors(f.a, f.b, 3 * f.scaling) for k, f in e.items()} for n, e in experts.items()}
            return apart({layer: delta / 3 for layer, delta in self.merge(scaled).items()}, before)
        return apart(self.merge(regauged(experts)), before)

    def test_is_what_the_registry_takes(self) -> None:
        """It was made by ``merge_method``, and says what it does and where it is from."""
        require(not merges.fault(self.method), merges.fault(self.method))
        require(bool(self.method.about and self.method.paper), "it has a line on what it does, and a paper")

    def test_claimed_laws_hold(self) -> None:
        """Each law that the method claims holds."""
        for law in LAWS:
            if law in self.method.laws:
                gap = self.distance_from(law)
                require(gap < self.tolerance, f"{self.method.name} claims that {LAWS[law]}, but is {gap:.2g} away")

    def test_a_layer_that_an_expert_leaves_alone_is_a_change_of_zero(self) -> None:
        """Experts need not change the same layers."""
        lacking = make_experts({"one": 3, "two": 2}, skip={"two": ["block.1.q"]})
        zero = Factors(torch.zeros(1, 12), torch.zeros(9, 1), 1.0)
        explicit = {"one": lacking["one"], "two": {k: lacking["two"].get(k, zero) for k in SHAPES}}
        require(apart(self.merge(lacking), self.merge(explicit)) < self.tolerance, "a missing layer is not zero")

    def test_the_same_seed_gives_the_same_merge(self) -> None:
        """What is drawn depends on the seed alone."""
        first, again = (self.merge(self.experts(), seed=1) for _ in range(2))
        require(all(torch.equal(first[layer], again[layer]) for layer in first), "two merges with one seed differ")
