"""Which experts get in each other's way, and what a merge would keep of each: known before anything is merged.

Letters: D in, O out, E experts, R rank, P and Q width of the joint span.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from dynamorouter.errors import ConfigError
from dynamorouter.merging.deltas import LayerDeltas, Layers, LowRank
from dynamorouter.merging.merge import check_experts
from dynamorouter.merging.methods._sparsify import largest
from dynamorouter.merging.registry import merges
from dynamorouter.model.lora.expert import Expert

TRIM = 0.2
"""Share of each expert's entries whose signs are compared."""
METHODS = ("factor_average", "linear", "ties", "tsv")
"""What is predicted where nothing else is asked for."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two experts in one layer, or over all layers.

    Attributes:
        one: name.
        other: name.
        layer: ``None`` over all layers.
        cosine: between the two changes.
        signs: of the entries among the largest of both, the share whose signs differ; 0.5 by chance.
        outputs: overlap of the spans of B, from 0 (orthogonal) to 1 (one within the other).
        inputs: overlap of the spans of A.
        angle: the smallest principal angle between the spans of B, in degrees.
    """

    one: str
    other: str
    layer: str | None
    cosine: float
    signs: float
    outputs: float
    inputs: float
    angle: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a merge keeps of one expert's change.

    Attributes:
        method: with its defaults.
        expert: name.
        kept: the length of the merge along the expert's own change, as a share of it; 1 is all of it.
        foreign: the length of what the merge holds besides, as a share of the expert's change; 0 is none.
        loss: the distance of the merge from the expert's own change, as a share of it; 1 is that of the bare base.
    """

    method: str
    expert: str
    kept: float
    foreign: float
    loss: float


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is known before a merge.

    Attributes:
        pairs: of experts, over all layers, those that conflict most first.
        layers: the same for each layer.
        forecasts: of each method and expert.
        rank: by share of the energy of the summed change, the largest rank that a layer needs.
    """

    pairs: list[Conflict]
    layers: list[Conflict]
    forecasts: list[Forecast]
    rank: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "pairs": [asdict(pair) for pair in self.pairs],
            "forecasts": [asdict(forecast) for forecast in self.forecasts],
            "rank_for_energy": dict(self.rank),
            "layers": [asdict(conflict) for conflict in self.layers],
        }


def diagnose(experts: Sequence[Expert], *, methods: Sequence[str] = METHODS) -> Diagnosis:
    """Compare the changes of experts, and predict what merges by these methods keep of each.

    Raises:
        MergeError: the experts cannot be merged at all.
        ConfigError: a method needs data, or does not take so many experts.
    """
    check_experts(experts)
    for name in methods:
        method = merges.get(name)
        if method.needs is not None or method.experts not in (0, len(experts)):
            why = f"needs {method.needs}" if method.needs else f"takes {method.experts} experts"
            raise ConfigError(
                f"merge method {name!r} {why}; name methods that merge {len(experts)} experts without data"
            )
    ordered = sorted(experts, key=lambda expert: expert.name)
    layers = Layers({expert.name: expert.factors for expert in ordered})
    conflicts: list[Conflict] = []
    products = torch.zeros(len(ordered), len(ordered), dtype=torch.float64)
    ranks = {"0.9": 0, "0.99": 0}
    for deltas in layers:
        products += _products(deltas)
        conflicts += _conflicts(deltas)
        values = torch.linalg.svdvals(deltas.weighted(torch.ones(len(deltas))).core).square()
        for share in ranks:
            energy = values.cumsum(0) / values.sum().clamp_min(1e-300)
            ranks[share] = max(ranks[share], int((energy < float(share)).sum()) + 1)
    pairs = [_overall(conflicts, products, ordered, i, j) for i, j in combinations(range(len(ordered)), 2)]
    return Diagnosis(
        sorted(pairs, key=lambda pair: -pair.signs * (pair.outputs + pair.inputs)),
        conflicts,
        [forecast for name in methods for forecast in _forecast(name, layers)],
        ranks,
    )


def _products(deltas: LayerDeltas) -> Tensor:
    """Return the inner products of the experts' changes, ``(E, E)``."""
    flat = deltas.span.cores.flatten(1)
    return flat @ flat.T


def _conflicts(deltas: LayerDeltas) -> list[Conflict]:
    products = _products(deltas)
    trimmed = [largest(deltas.dense(e), TRIM) for e in range(len(deltas))]
    sides = [_sides(core) for core in deltas.span.cores]
    conflicts = []
    for i, j in combinations(range(len(deltas)), 2):
        if not (deltas.ranks[i] and deltas.ranks[j]):
            continue
        both = (trimmed[i] != 0) & (trimmed[j] != 0)
        differ = both & (trimmed[i].sign() != trimmed[j].sign())
        outputs = torch.linalg.svdvals(sides[i][0].T @ sides[j][0])
        inputs = torch.linalg.svdvals(sides[i][1].T @ sides[j][1])
        conflicts.append(
            Conflict(
                deltas.experts[i],
                deltas.experts[j],
                deltas.layer,
                _share(float(products[i, j]), math.sqrt(float(products[i, i] * products[j, j]))),
                _share(int(differ.sum()), int(both.sum())),
                _mean_square(outputs),
                _mean_square(inputs),
                math.degrees(math.acos(min(1.0, float(outputs[0])))) if outputs.numel() else 90.0,
            )
        )
    return conflicts


def _sides(core: Tensor) -> tuple[Tensor, Tensor]:
    """Return orthonormal bases ``(P, R)`` and ``(Q, R)`` of a core's columns and rows."""
    u, s, v = torch.linalg.svd(core, full_matrices=False)
    rank = int((s > 1e-10 * s[0]).sum()) if s.numel() and s[0] > 0 else 0
    return u[:, :rank], v[:rank].T


def _mean_square(values: Tensor) -> float:
    return float(values.square().mean()) if values.numel() else 0.0


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _overall(conflicts: Sequence[Conflict], products: Tensor, experts: Sequence[Expert], i: int, j: int) -> Conflict:
    """Put a pair's layers together: the cosine of the whole changes, the means of the rest, the smallest angle."""
    one, other = experts[i].name, experts[j].name
    layers = [conflict for conflict in conflicts if (conflict.one, conflict.other) == (one, other)]
    count = max(1, len(layers))
    return Conflict(
        one,
        other,
        None,
        _share(float(products[i, j]), math.sqrt(float(products[i, i] * products[j, j]))),
        sum(conflict.signs for conflict in layers) / count,
        sum(conflict.outputs for conflict in layers) / count,
        sum(conflict.inputs for conflict in layers) / count,
        min((conflict.angle for conflict in layers), default=90.0),
    )


def _forecast(name: str, layers: Layers) -> list[Forecast]:
    """Merge layer by layer, and compare with each expert's own change."""
    method = merges.get(name)
    count = len(layers.experts)
    weights = torch.full((count,), 1.0 if method.weights == "ones" else 1 / count, dtype=torch.float64)
    defaults = {**method.options, "seed": 0}
    plan = method.plan(layers, weights, **defaults)
    inner, squares, total = torch.zeros(count), torch.zeros(count), 0.0
    for deltas in layers:
        options = plan.options.get(deltas.layer, {})
        merged = method(deltas, plan.weights.get(deltas.layer, weights), **options)
        matrix = merged.dense() if isinstance(merged, LowRank) else merged
        total += float(matrix.square().sum())
        for e in range(count):
            # <M, B A> without B A: the trace of B^T M A^T
            inner[e] += float((deltas.b[e] * (matrix @ deltas.a[e].T)).sum())
            squares[e] += float(((deltas.b[e].T @ deltas.b[e]) * (deltas.a[e] @ deltas.a[e].T)).sum())
    forecasts = []
    for e, expert in enumerate(layers.experts):
        square = float(squares[e])
        share = _share(float(inner[e]), square)
        foreign = max(0.0, total - share * share * square)
        distance = max(0.0, total - 2 * float(inner[e]) + square)
        forecasts.append(
            Forecast(
                name, expert, share, _share(math.sqrt(foreign), math.sqrt(square)), math.sqrt(_share(distance, square))
            )
        )
    return forecasts
