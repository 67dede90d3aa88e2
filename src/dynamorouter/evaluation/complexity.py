"""What the complexity recipe reports: whether tiers help, how well they are routed, and what routing costs.

Five arms are compared on the same held-out rows by the loss of the target text alone: the base, one LoRA with as many
numbers as all tier experts together and trained on the same rows, the expert of the true tier, the routed experts, and
the even mixture of all. Every difference comes with a paired interval.

Letters: N rows, E tiers, K experts per row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamorouter.data.complexity.record import complexities
from dynamorouter.inference.engine import Engine
from dynamorouter.inference.policy import Assignment
from dynamorouter.metrics.bootstrap import Array, bootstrap_ci, bootstrap_difference
from dynamorouter.metrics.routing import gini
from dynamorouter.routing.complexity import TierRouter
from dynamorouter.system.system import System
from dynamorouter.tasks.record import Record
from dynamorouter.utils.devices import now

ONE = "one_lora"
ARMS = ("base", ONE, "true_tier", "routed", "uniform")
SINGLE = 100
"""Prompts that are routed one at a time for the latency."""
LEAVES = 16
"""Leaves of the tree that guesses a tier from the length alone."""


@dataclass(frozen=True, slots=True)
class Routed:
    """What the router made of some rows.

    Attributes:
        experts: best first ``(N, K)``.
        weights: of them ``(N, K)``.
        probabilities: over the tiers ``(N, E)``.
        complexity: estimated, ``(N,)``; NaN where the router does not estimate it.
        milliseconds: per prompt: ``batch`` and ``single`` of the router alone, ``batch_with_base`` and
            ``single_with_base`` with tokens and the base's trunk.
    """

    experts: Tensor
    weights: Tensor
    probabilities: Tensor
    complexity: Tensor
    milliseconds: dict[str, float]


def arm_losses(system: System, rows: Sequence[Record], tiers: Any, routed: Routed) -> dict[str, Array]:
    """Return for each arm that a system holds the summed loss of each row's text in nats and its tokens, ``(N, 2)``."""
    count, true = len(system.experts), torch.as_tensor(tiers)
    everyone, even = torch.arange(count).expand(len(rows), -1), torch.full((len(rows), count), 1.0 / count)
    assignments = {
        "base": Assignment.fixed(true.tolist(), (true[:, None], torch.zeros(len(rows), 1))),
        "true_tier": Assignment.fixed(true.tolist()),
        "routed": Assignment.fixed(routed.experts[:, 0].tolist(), (routed.experts, routed.weights)),
        "uniform": Assignment.fixed(true.tolist(), (everyone, even)),
    }
    return {arm: text_losses(system.engine, rows, assignment) for arm, assignment in assignments.items()}


def text_losses(engine: Engine, rows: Sequence[Record], assignment: Assignment) -> Array:
    """Return the summed loss of each row's text in nats under its experts, and its number of tokens, ``(N, 2)``."""
    return np.array(engine.losses(rows, assignment), dtype=np.float64)


def route_rows(system: System, rows: Sequence[Record]) -> Routed:
    """Route rows in batches, and some of them one at a time for the latency."""
    pairs = [(record.text, record.pair) for record in rows]
    router, device = system.router, system.bases[system.router_base].device
    parts: list[tuple[list[int], Any, Tensor]] = []
    alone, before = 0.0, now(device)
    for positions, chunk in system.engine.chunks(pairs):
        begun = now(device)
        route = system.engine.route(chunk)
        alone += now(device) - begun
        estimates = torch.full((len(positions),), math.nan)
        if isinstance(router, TierRouter):
            estimates = router.complexity(chunk.router_input()).cpu()
        parts.append((positions, route, estimates))
    whole = now(device) - before
    order = torch.tensor([position for positions, _, _ in parts for position in positions]).argsort()
    single, single_alone = _one_at_a_time(system, pairs[:SINGLE])
    count = max(1, len(pairs))
    return Routed(
        experts=torch.cat([route.experts.cpu() for _, route, _ in parts])[order],
        weights=torch.cat([route.weights.float().cpu() for _, route, _ in parts])[order],
        probabilities=torch.cat([route.probabilities.float().cpu() for _, route, _ in parts])[order],
        complexity=torch.cat([estimates for _, _, estimates in parts])[order],
        milliseconds={
            "batch": 1000 * alone / count,
            "batch_with_base": 1000 * whole / count,
            "single": single_alone,
            "single_with_base": single,
        },
    )


def _one_at_a_time(system: System, pairs: Sequence[tuple[str, str | None]]) -> tuple[float, float]:
    """Return the median milliseconds of routing one prompt: tokens and base included, and the router alone."""
    device = system.bases[system.router_base].device
    whole, alone = [], []
    for pair in [*pairs[:1], *pairs]:  # the first warms up
        before = now(device)
        ((_, chunk),) = system.engine.chunks([pair])
        begun = now(device)
        system.engine.route(chunk)
        ended = now(device)
        whole.append(1000 * (ended - before))
        alone.append(1000 * (ended - begun))
    return float(np.median(whole[1:])), float(np.median(alone[1:]))


def routing_scores(
    names: Sequence[str],
    tiers: Any,
    routed: Routed,
    rows: Sequence[Record],
    train: Mapping[str, Sequence[Record]],
) -> dict[str, Any]:
    """Score routes beside the majority class and a tree on the length, and the complexity beside its mean."""
    chosen = routed.experts[:, 0].numpy()
    usage = np.bincount(chosen, minlength=len(names)) / len(chosen)
    lengths = {name: _lengths(records) for name, records in train.items()}
    complexity = np.array(complexities(rows))
    train_complexity = np.array([score for name in names for score in complexities(train[name])])
    estimated = routed.complexity.double().numpy()
    error = float(np.mean((estimated - complexity) ** 2)) if not np.isnan(estimated).any() else None
    by_mean = float(np.mean((train_complexity.mean() - complexity) ** 2))
    by_length = _length_estimate(np.concatenate(list(lengths.values())), train_complexity, _lengths(rows), complexity)
    return {
        "accuracy": float((chosen == tiers).mean()),
        "accuracy_ci95": bootstrap_ci(
            np.stack([chosen == tiers, np.ones(len(tiers))], axis=1).astype(float), _ratio, seed=0
        ),
        "majority": float(np.bincount(tiers).max() / len(tiers)),
        "length_only": _length_accuracy(names, lengths, _lengths(rows), tiers),
        "usage": dict(zip(names, map(float, usage), strict=True)),
        "gini": gini(usage),
        "confusion": np.bincount(len(names) * tiers + chosen, minlength=len(names) ** 2)
        .reshape(len(names), -1)
        .tolist(),
        "complexity_mse": error,
        "complexity_mse_of_mean": by_mean,
        "complexity_mse_of_length": by_length,
        "complexity_r2": None if error is None else 1.0 - error / max(float(complexity.var()), 1e-12),
    }


def compare(
    losses: Mapping[str, Array], tiers: Any, names: Sequence[str], *, seed: int, resamples: int
) -> dict[str, Any]:
    """Return loss and perplexity of each arm with intervals, and paired differences of the loss."""
    arms = {}
    for arm in ARMS:
        sums = losses[arm]
        loss = float(_ratio(sums.sum(axis=0)))
        low, high = bootstrap_ci(sums, _ratio, seed=seed, resamples=resamples)
        arms[arm] = {
            "loss": loss,
            "loss_ci95": [low, high],
            "perplexity": math.exp(loss),
            "perplexity_ci95": [math.exp(low), math.exp(high)],
            "by_tier": {name: float(_ratio(sums[tiers == i].sum(axis=0))) for i, name in enumerate(names)},
        }
    pairs = [(arm, second) for second in (ONE, "base", "uniform") for arm in ("true_tier", "routed") if arm != second]
    pairs += [("routed", "true_tier"), (ONE, "base")]
    differences = {}
    for first, second in pairs:
        difference = bootstrap_difference(losses[first], losses[second], _ratio, seed=seed, resamples=resamples)
        differences[f"{first} - {second}"] = {"loss": difference.value, "ci95": [difference.low, difference.high]}
    return {"arms": arms, "differences": differences}


def _ratio(sums: Array) -> Array:
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1e-12))


def _lengths(rows: Sequence[Record]) -> Array:
    """Return the words of each row, instruction and input together."""
    return np.array([len(record.text.split()) + len((record.pair or "").split()) for record in rows], dtype=np.float64)


def _length_accuracy(names: Sequence[str], lengths: Mapping[str, Array], test_lengths: Array, tiers: Any) -> float:
    """Return how often a tree on the number of words alone, grown on train rows, names the right tier."""
    from sklearn.tree import DecisionTreeClassifier

    train_lengths = np.concatenate([lengths[name] for name in names])[:, None]
    targets = np.repeat(np.arange(len(names)), [len(lengths[name]) for name in names])
    tree = DecisionTreeClassifier(max_leaf_nodes=LEAVES, random_state=0).fit(train_lengths, targets)
    return float((tree.predict(test_lengths[:, None]) == tiers).mean())


def _length_estimate(train_lengths: Array, train_scores: Array, test_lengths: Array, test_scores: Array) -> float:
    """Return the mean squared error of a tree that estimates the complexity from the number of words."""
    from sklearn.tree import DecisionTreeRegressor

    tree = DecisionTreeRegressor(max_leaf_nodes=LEAVES, random_state=0).fit(train_lengths[:, None], train_scores)
    return float(np.mean((tree.predict(test_lengths[:, None]) - test_scores) ** 2))
