"""Merge methods written out slowly over dense float64 matrices: the references that the quick ones are held to.

Each takes the experts' changes ``(E, O, D)`` by layer and weights ``(E,)``, and returns the merged change by layer.
Nothing here comes from the package but the random numbers, which are part of what is asked for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dynamorouter.utils.seeding import seeded
from support.mergecases import Factored, dense

Stacks = Mapping[str, Tensor]
Reference = Callable[..., dict[str, Tensor]]


def by_layer(function: Callable[..., Tensor]) -> Reference:
    """Apply a function of one layer to each."""

    def whole(stacks: Stacks, weights: Tensor, **options: Any) -> dict[str, Tensor]:
        return {layer: function(stack, weights, layer=layer, **options) for layer, stack in stacks.items()}

    return whole


def total(stack: Tensor, weights: Tensor, **_: Any) -> Tensor:
    out = torch.zeros_like(stack[0])
    for change, weight in zip(stack, weights.tolist(), strict=True):
        out += weight * change
    return out


def scaled(stack: Tensor, weights: Tensor, *, scale: float = 0.4, **_: Any) -> Tensor:
    return scale * total(stack, weights)


def cut(stack: Tensor, weights: Tensor, *, rank: int, **_: Any) -> Tensor:
    u, s, v = torch.linalg.svd(total(stack, weights))
    return u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank]


def arc(stack: Tensor, weights: Tensor, **_: Any) -> Tensor:
    one, two = stack[0].flatten(), stack[1].flatten()
    angle = math.acos(float(one @ two / one.norm() / two.norm()))
    t = float(weights[1] / weights.sum())
    return (math.sin((1 - t) * angle) * stack[0] + math.sin(t * angle) * stack[1]) / math.sin(angle)


def stock(stack: Tensor, weights: Tensor, **_: Any) -> Tensor:
    flat, count = stack.flatten(1), len(stack)
    cosines = [
        float(torch.nn.functional.cosine_similarity(flat[i], flat[j], dim=0)) for i in range(count) for j in range(i)
    ]
    cosine = sum(cosines) / len(cosines)
    return max(0.0, count * cosine / (1 + (count - 1) * cosine)) * total(stack, weights)


def top(matrix: Tensor, count: int) -> Tensor:
    chosen = sorted(range(matrix.numel()), key=lambda i: -abs(float(matrix.flatten()[i])))[:count]
    out = torch.zeros(matrix.numel(), dtype=matrix.dtype)
    out[chosen] = matrix.flatten()[chosen]
    return out.view_as(matrix)


def magnitude(stack: Tensor, weights: Tensor, *, density: float = 0.5, **_: Any) -> Tensor:
    return total(torch.stack([top(each, int(density * each.numel())) for each in stack]), weights)


def breadcrumbs(stack: Tensor, weights: Tensor, *, density: float, gamma: float, scale: float, **_: Any) -> Tensor:
    size = stack[0].numel()
    pruned = [top(each, int(gamma * size) + int(density * size)) - top(each, int(gamma * size)) for each in stack]
    return scale * total(torch.stack(pruned), weights)


def draw(stack: Tensor, layer: str, names: list[str], seed: int) -> Tensor:
    shape = stack.shape[1:]
    return torch.stack(
        [torch.rand(shape, generator=seeded(seed, "merge", layer, n), dtype=torch.float64) for n in names]
    )


def dare(stack: Tensor, layer: str, names: list[str], density: float) -> Tensor:
    return torch.where(draw(stack, layer, names, 0) < density, stack / density, 0.0)


def della(stack: Tensor, layer: str, names: list[str], density: float, epsilon: float) -> Tensor:
    chance = torch.empty_like(stack)
    for e, change in enumerate(stack):
        for row, values in enumerate(change):
            for column, value in enumerate(values):
                smaller = int((values.abs() < value.abs()).sum())
                chance[e, row, column] = density - epsilon / 2 + epsilon * smaller / (len(values) - 1)
    return torch.where(draw(stack, layer, names, 0) < chance, stack / chance, 0.0)


def elected(pruned: Tensor, weights: Tensor, *, elect: str, divide: str, weigh: bool) -> Tensor:
    out = torch.zeros_like(pruned[0])
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            entries = [float(each[row, column]) for each in pruned]
            own = weights.tolist()
            votes = [w * x if weigh else x for x, w in zip(entries, own, strict=True)]
            if elect == "count":
                votes = [math.copysign(1, x) if x else 0 for x in votes]
            sign = 1 if sum(votes) >= 0 else -1
            inside = [(x, w) for x, w in zip(entries, own, strict=True) if (w * x if weigh else x) * sign > 0]
            if inside:
                by = {"mean": len(inside), "weights": sum(w for _, w in inside), "sum": 1.0}[divide]
                out[row, column] = sum(w * x for x, w in inside) / by
    return out


def ties_layer(
    stack: Tensor,
    weights: Tensor,
    *,
    density: float = 0.2,
    elect: str = "mass",
    divide: str = "weights",
    weigh: bool = True,
    **_: Any,
) -> Tensor:
    pruned = torch.stack([top(each, max(1, int(density * each.numel()))) for each in stack])
    return elected(pruned, weights, elect=elect, divide=divide, weigh=weigh)


def ties_global(stacks: Stacks, weights: Tensor, *, density: float = 0.2, **_: Any) -> dict[str, Tensor]:
    experts = len(weights)
    flat = [torch.cat([stack[e].flatten() for stack in stacks.values()]) for e in range(experts)]
    kept = [top(each, int(density * each.numel())) for each in flat]
    sizes = [stack[0].numel() for stack in stacks.values()]
    parts = [each.split(sizes) for each in kept]
    return {
        layer: elected(
            torch.stack([parts[e][i].view_as(stack[e]) for e in range(experts)]),
            weights,
            elect="mass",
            divide="weights",
            weigh=True,
        )
        for i, (layer, stack) in enumerate(stacks.items())
    }


def rank_of(values: Tensor) -> int:
    return int((values > 1e-10 * values[0]).sum())


def knots(stack: Tensor, weights: Tensor, *, inner: str = "ties", density: float = 0.2, **_: Any) -> Tensor:
    u, s, v = torch.linalg.svd(torch.cat(list(stack), dim=1), full_matrices=False)
    rank = rank_of(s)
    parts = torch.stack(list((torch.diag(s[:rank]) @ v[:rank]).split(stack.shape[2], dim=1)))
    return u[:, :rank] @ within(parts, weights, inner, density)


def within(parts: Tensor, weights: Tensor, inner: str, density: float) -> Tensor:
    if inner == "linear":
        return total(parts, weights / weights.sum())
    return ties_layer(parts, weights, density=density)


def core_space(stack: Tensor, weights: Tensor, *, inner: str = "ties", density: float = 0.2, **_: Any) -> Tensor:
    lefts, rights = [], []
    for change in stack:
        u, s, v = torch.linalg.svd(change)
        rank = rank_of(s)
        lefts.append(u[:, :rank] * s[:rank].sqrt())
        rights.append(s[:rank].sqrt()[:, None] * v[:rank])
    near, values, _ = torch.linalg.svd(torch.cat(lefts, dim=1), full_matrices=False)
    near = near[:, : rank_of(values)]
    _, values, far = torch.linalg.svd(torch.cat(rights), full_matrices=False)
    far = far[: rank_of(values)]
    cores = torch.stack([near.T @ change @ far.T for change in stack])
    return near @ within(cores, weights, inner, density) @ far


def tsv(stack: Tensor, weights: Tensor, *, ranks: list[int], **_: Any) -> Tensor:
    share = min(1.0, min(stack.shape[1:]) / sum(ranks))
    us, ss, vs = [], [], []
    for change, weight, rank in zip(stack, weights.tolist(), ranks, strict=True):
        u, s, v = torch.linalg.svd(change)
        count = max(1, int(share * rank + 1e-9))
        us.append(u[:, :count])
        ss.append(weight * s[:count])
        vs.append(v[:count].T)

    def whiten(columns: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(columns.T @ columns)
        inverse = torch.where(values > 1e-10 * values[-1], values.clamp_min(1e-300) ** -0.5, 0.0)
        return columns @ vectors @ torch.diag(inverse) @ vectors.T

    return whiten(torch.cat(us, dim=1)) @ torch.diag(torch.cat(ss)) @ whiten(torch.cat(vs, dim=1)).T


def iso_c(stack: Tensor, weights: Tensor, **_: Any) -> Tensor:
    u, s, v = torch.linalg.svd(total(stack, weights), full_matrices=False)
    rank = rank_of(s)
    return s[:rank].mean() * u[:, :rank] @ v[:rank]


def regmean(stack: Tensor, weights: Tensor, *, grams: list[Tensor], shrink: float = 0.9, **_: Any) -> Tensor:
    """RegMean as in the paper, on whole weights: any base comes out as it went in."""
    base = torch.randn(stack.shape[1:], generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    eye = torch.eye(stack.shape[2], dtype=torch.float64)
    moments = [w * torch.where(eye > 0, g, shrink * g) for g, w in zip(grams, weights.tolist(), strict=True)]
    whole = sum(g @ (base + change).T for g, change in zip(moments, stack, strict=True))
    merged: Tensor = torch.linalg.inv(sum(moments)) @ whole  # type: ignore[arg-type]
    return merged.T - base


def fisher(stack: Tensor, weights: Tensor, *, fishers: list[Tensor], floor: float = 1e-6, **_: Any) -> Tensor:
    mean = torch.stack(fishers).double().mean()
    mass = [w * (f.double() + floor * mean) for f, w in zip(fishers, weights.tolist(), strict=True)]
    return sum(m * change for m, change in zip(mass, stack, strict=True)) / sum(mass)  # type: ignore[return-value]


def factor_average(experts: Factored, weights: Tensor) -> dict[str, Tensor]:
    found = {}
    for layer in next(iter(experts.values())):
        rank = max(each[layer].a.shape[0] for each in experts.values())
        a, b = 0, 0
        for factors, weight in zip(experts.values(), weights.tolist(), strict=True):
            f = factors[layer]
            pad = rank - f.a.shape[0]
            root = math.sqrt(f.scaling)
            a = a + weight * root * torch.nn.functional.pad(f.a.double(), (0, 0, 0, pad))
            b = b + weight * root * torch.nn.functional.pad(f.b.double(), (0, pad))
        found[layer] = b @ a  # type: ignore[operator]
    return found


def stacks_of(experts: Factored) -> dict[str, Tensor]:
    return {layer: dense(experts, layer) for layer in next(iter(experts.values()))}


def lego(experts: Factored, weights: Tensor, *, clusters: int, rescale: bool, scale: float = 1.0) -> dict[str, Tensor]:
    """Try every way to put the units into clusters and take the one with the least weighted scatter."""
    made = {}
    for layer in next(iter(experts.values())):
        units, mass = [], []
        for factors, weight in zip((own[layer] for own in experts.values()), weights.tolist(), strict=True):
            root = math.sqrt(factors.scaling)
            for row, column in zip(factors.a.double(), factors.b.double().T, strict=True):
                units.append((root * row, root * column))
                mass.append(weight)
        joined = torch.stack([torch.cat(unit) for unit in units])
        share = torch.tensor(mass, dtype=torch.float64)
        best, least = None, math.inf
        for labels in itertools.product(range(clusters), repeat=len(units)):
            if len(set(labels)) < clusters:
                continue
            scatter = 0.0
            for cluster in range(clusters):
                mine = [i for i, label in enumerate(labels) if label == cluster]
                centre = (share[mine, None] * joined[mine]).sum(0) / share[mine].sum()
                scatter += float((share[mine] * ((joined[mine] - centre) ** 2).sum(1)).sum())
            if scatter < least - 1e-12:
                best, least = labels, scatter
        assert best is not None
        change = torch.zeros(len(units[0][1]), len(units[0][0]), dtype=torch.float64)
        for cluster in range(clusters):
            mine = [i for i, label in enumerate(best) if label == cluster]
            row = sum(mass[i] * units[i][0] for i in mine) / sum(mass[i] for i in mine)
            column = sum(mass[i] * units[i][1] for i in mine) / sum(mass[i] for i in mine)
            if rescale:
                length = sum(mass[i] * float(joined[i].norm()) for i in mine) / sum(mass[i] for i in mine)
                stretch = length / math.sqrt(float(row @ row + column @ column))
                row, column = stretch * row, stretch * column
            change += torch.outer(column, row)
        largest = max(len(own[layer].a) for own in experts.values())
        made[layer] = scale * (math.sqrt(largest / clusters) if rescale else 1.0) * change
    return made


def evolved(
    loss: Callable[[list[float]], float], start: list[float], names: list[str], *, budget: int, step: float, seed: int
) -> list[float]:
    """Return the best point of a (1+1) evolution strategy with the one-fifth rule, written out number by number."""
    draws = {name: seeded(seed, "search", name) for name in names}
    best, value = list(start), loss(start)
    for _ in range(budget - 1):
        moved = [
            min(1.5, max(-1.5, x + step * float(torch.randn((), generator=draws[name], dtype=torch.float64))))
            for name, x in zip(names, best, strict=True)
        ]
        found = loss(moved)
        if found <= value:
            best, value, step = moved, found, 1.5 * step
        else:
            step /= 1.5**0.25
    return best


def adam(loss: Callable[[list[float]], float], start: list[float], *, steps: int, rate: float) -> list[float]:
    """Return where Adam gets to with gradients taken by differences (exact for a loss of degree two)."""
    point, first, second = list(start), [0.0] * len(start), [0.0] * len(start)
    for step in range(1, steps + 1):
        slopes = []
        for i in range(len(point)):
            above, below = list(point), list(point)
            above[i] += 0.5
            below[i] -= 0.5
            slopes.append(loss(above) - loss(below))
        for i, slope in enumerate(slopes):
            first[i] = 0.9 * first[i] + 0.1 * slope
            second[i] = 0.999 * second[i] + 0.001 * slope * slope
            mean, spread = first[i] / (1 - 0.9**step), second[i] / (1 - 0.999**step)
            point[i] -= rate * mean / (math.sqrt(spread) + 1e-8)
    return point
