"""What the complexity recipe reports: whether tiers help, how well they are routed, and what routing costs.

Five arms are compared on the same held-out rows by the loss of the wanted text alone: the base, one LoRA with as many
numbers as all tier experts together and trained on the same rows, the expert of the true tier, the routed experts, and
the even mixture of all. Every difference comes with a paired interval.

Letters: N rows, E tiers, K experts per row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamorouter.builders import cache_options, expert_plan, load_bases, loop_options, run_tasks
from dynamorouter.complexity.rows import complexities
from dynamorouter.data.prepare import PreparedData
from dynamorouter.data.records import Record
from dynamorouter.devices import now
from dynamorouter.learn.examples import make_examples
from dynamorouter.learn.experts import fit_experts
from dynamorouter.learn.layout import Layout, last_states
from dynamorouter.library import Library
from dynamorouter.model.bank import Gate, RowGate
from dynamorouter.model.base import Base
from dynamorouter.model.expert import Expert, install_experts
from dynamorouter.model.heads import build_head
from dynamorouter.model.passes import token_batches
from dynamorouter.routing.complexity import TierRouter
from dynamorouter.settings import Config
from dynamorouter.system import System
from dynamorouter.tasks.statistics import Array, bootstrap_ci, bootstrap_difference
from dynamorouter.tasks.task import Task

ONE = "one_lora"
ARMS = ("base", ONE, "true_tier", "routed", "uniform")
SINGLE = 100
"""Prompts that are routed one at a time for the latency."""
LEAVES = 16
"""Leaves of the tree that guesses a tier from the length alone."""

Begin = Callable[[int], Callable[[int], None]]


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


def joint_scores(data: PreparedData, names: Sequence[str]) -> dict[int, list[float]] | None:
    """Return the complexity of each row of the joint phase, by expert; ``None`` where none is known."""
    found = {index: complexities(data.split("joint", name)) for index, name in enumerate(names)}
    return found if any(not math.isnan(score) for own in found.values() for score in own) else None


def complexity_report(
    config: Config,
    out: Path,
    system: System,
    data: PreparedData,
    *,
    begin: Begin = lambda total: lambda windows: None,
) -> dict[str, Any]:
    """Return the part ``complexity`` of a report.

    Args:
        config: settings with ``complexity``.
        out: folder of the run; the one LoRA is kept under ``phases/``.
        system: with experts of all tiers and a router.
        data: prepared rows.
        begin: called with the number of windows that the one LoRA will be trained on.
    """
    names = system.names
    held = {name: data.split("report", name) for name in names}
    rows = [record for name in names for record in held[name]]
    tiers = np.repeat(np.arange(len(names)), [len(held[name]) for name in names])
    found = route_rows(system, rows)
    train = {name: data.split("train", name) for name in names}
    report: dict[str, Any] = {
        "rows": {name: {"train": len(train[name]), "report": len(held[name])} for name in names},
        "routing": routing_scores(names, tiers, found, rows, train),
        "latency_ms": found.milliseconds,
    }
    if config.complexity is None or not config.complexity.arms:
        return report
    losses = arm_losses(system, rows, tiers, found)
    base = load_bases(config)[config.base.name]
    one = one_lora(config, out, base, data, names, begin=begin)
    install_experts(base, [one])
    alone = torch.zeros(len(rows), dtype=torch.int64, device=base.device)
    losses[ONE] = row_losses(base, one.task, rows, lambda at: RowGate(alone[at]))
    parameters = {"tiers": sum(expert.parameters() for expert in system.experts), ONE: one.parameters()}
    options = {"seed": config.seed, "resamples": config.evaluation.bootstrap}
    return {**report, "parameters": parameters, **compare(losses, tiers, names, **options)}


def row_losses(base: Base, task: Task, rows: Sequence[Record], gates: Callable[[list[int]], Gate]) -> Array:
    """Return for each row the summed loss of its text in nats and its number of tokens, ``(N, 2)``.

    Args:
        base: with the experts installed.
        task: how a row becomes a prompt.
        rows: the rows.
        gates: makes the gate of the rows at some places.
    """
    head = build_head(task, base.width)
    examples = make_examples(base, head, task, rows, expert=0)
    found = np.zeros((len(rows), 2))
    with torch.inference_mode():
        for group in token_batches([len(example) for example in examples], budget=8192):
            layout = Layout.of(examples, [[i] for i in group])
            batch = layout.batch(base)
            hidden, mask = last_states(base, layout, batch, gates(group))
            losses = head.loss(hidden, mask, [examples[i].target for i in group])
            for i, loss in zip(group, losses.tolist(), strict=True):
                found[examples[i].row] = loss, examples[i].units
    return found


def arm_losses(system: System, rows: Sequence[Record], tiers: Any, found: Routed) -> dict[str, Array]:
    """Return the losses of the arms that a system holds, each ``(N, 2)``."""
    base, task = system.bases[system.router_base], system.experts[0].task
    count = len(system.experts)
    even = torch.full((1, count), 1.0 / count, device=base.device)
    everyone = torch.arange(count, device=base.device)[None]
    true, best, weights = (part.to(base.device) for part in (torch.tensor(tiers), found.experts, found.weights))
    gates: dict[str, Callable[[list[int]], Gate]] = {
        "base": lambda at: RowGate(torch.full((len(at),), -1, device=base.device)),
        "true_tier": lambda at: RowGate(true[at]),
        "routed": lambda at: RowGate(best[at], weights[at]),
        "uniform": lambda at: RowGate(everyone.expand(len(at), -1), even.expand(len(at), -1)),
    }
    return {name: row_losses(base, task, rows, make) for name, make in gates.items()}


def one_lora(
    config: Config, out: Path, base: Base, data: PreparedData, names: Sequence[str], *, begin: Begin
) -> Expert:
    """Return the one expert of all tiers: as many numbers as theirs together, the same rows, the same passes.

    It is trained unless the run has it already, and goes on from its own checkpoint.
    """
    library = Library(out / "phases" / ONE)
    first = run_tasks(config)[0]
    if ONE in library.names():
        return library.load(ONE, base)
    plan = expert_plan(config, first)
    plans = [expert_plan(config, task) for task in run_tasks(config)]
    rank = sum(own.lora.rank for own in plans)
    epochs = config.complexity.arm_epochs if config.complexity else None
    plan = replace(
        plan,
        task=replace(first, name=ONE),
        lora=replace(plan.lora, rank=rank, alpha=plan.lora.alpha * rank / plan.lora.rank),  # the same scaling
        epochs=epochs or plan.epochs,
    )
    parts = ("train", "joint") if config.joint.enabled else ("train",)
    train = [record for name in names for part in parts for record in data.split(part, name)]
    select = [record for name in names for record in data.split("select", name)]
    (one,) = fit_experts(
        base,
        [plan],
        {ONE: train},
        {ONE: select},
        options=loop_options(config),
        log=lambda step, values: None,
        cache=cache_options(config, out / "phases" / "trunk"),
        checkpoint=out / "phases" / f"{ONE}.checkpoint",
        begin=begin,
    )
    library.add(one, base)
    (out / "phases" / f"{ONE}.checkpoint").unlink(missing_ok=True)
    return one


def route_rows(system: System, rows: Sequence[Record]) -> Routed:
    """Route rows in batches, and some of them one at a time for the latency."""
    pairs = [(record.text, record.pair) for record in rows]
    router, device = system.router, system.bases[system.router_base].device
    parts: list[tuple[list[int], Any, Tensor]] = []
    alone, before = 0.0, now(device)
    for places, chunk in system.chunks(pairs):
        begun = now(device)
        route = system.route_chunk(chunk)
        alone += now(device) - begun
        estimates = torch.full((len(places),), math.nan)
        if isinstance(router, TierRouter):
            estimates = router.complexity(system.router_input(chunk)).cpu()
        parts.append((places, route, estimates))
    whole = now(device) - before
    order = torch.tensor([place for places, _, _ in parts for place in places]).argsort()
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
        ((_, chunk),) = system.chunks([pair])
        begun = now(device)
        system.route_chunk(chunk)
        ended = now(device)
        whole.append(1000 * (ended - before))
        alone.append(1000 * (ended - begun))
    return float(np.median(whole[1:])), float(np.median(alone[1:]))


def routing_scores(
    names: Sequence[str],
    tiers: Any,
    found: Routed,
    rows: Sequence[Record],
    train: Mapping[str, Sequence[Record]],
) -> dict[str, Any]:
    """Score routes beside the majority class and a tree on the length, and the complexity beside its mean."""
    chosen = found.experts[:, 0].numpy()
    usage = np.bincount(chosen, minlength=len(names)) / len(chosen)
    lengths = {name: _lengths(own) for name, own in train.items()}
    wanted = np.array(complexities(rows))
    known = np.array([score for name in names for score in complexities(train[name])])
    estimated = found.complexity.double().numpy()
    error = float(np.mean((estimated - wanted) ** 2)) if not np.isnan(estimated).any() else None
    by_mean = float(np.mean((known.mean() - wanted) ** 2))
    by_length = _length_estimate(np.concatenate(list(lengths.values())), known, _lengths(rows), wanted)
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
        "complexity_r2": None if error is None else 1.0 - error / max(float(wanted.var()), 1e-12),
    }


def gini(shares: Array) -> float:
    """Return the Gini coefficient of the experts' shares: 0 where all are used alike, (E - 1) / E for one alone."""
    ordered = np.sort(np.asarray(shares, dtype=np.float64))
    ranks = np.arange(1, len(ordered) + 1)
    return float((2 * ranks - len(ordered) - 1) @ ordered / (len(ordered) * ordered.sum()))


def compare(
    losses: Mapping[str, Array], tiers: Any, names: Sequence[str], *, seed: int, resamples: int
) -> dict[str, Any]:
    """Return loss and perplexity of each arm with intervals, and paired differences of the loss."""
    arms = {}
    for arm in ARMS:
        own = losses[arm]
        loss = float(_ratio(own.sum(axis=0)))
        low, high = bootstrap_ci(own, _ratio, seed=seed, resamples=resamples)
        arms[arm] = {
            "loss": loss,
            "loss_ci95": [low, high],
            "perplexity": math.exp(loss),
            "perplexity_ci95": [math.exp(low), math.exp(high)],
            "by_tier": {name: float(_ratio(own[tiers == i].sum(axis=0))) for i, name in enumerate(names)},
        }
    pairs = [(arm, other) for other in (ONE, "base", "uniform") for arm in ("true_tier", "routed") if arm != other]
    pairs += [("routed", "true_tier"), (ONE, "base")]
    differences = {}
    for first, second in pairs:
        found = bootstrap_difference(losses[first], losses[second], _ratio, seed=seed, resamples=resamples)
        differences[f"{first} - {second}"] = {"loss": found.value, "ci95": [found.low, found.high]}
    return {"arms": arms, "differences": differences}


def _ratio(sums: Array) -> Array:
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1e-12))


def _lengths(rows: Sequence[Record]) -> Array:
    """Return the words of each row, instruction and input together."""
    return np.array([len(record.text.split()) + len((record.pair or "").split()) for record in rows], dtype=np.float64)


def _length_accuracy(names: Sequence[str], lengths: Mapping[str, Array], held: Array, tiers: Any) -> float:
    """Return how often a tree on the number of words alone, grown on train rows, names the right tier."""
    from sklearn.tree import DecisionTreeClassifier

    known = np.concatenate([lengths[name] for name in names])[:, None]
    targets = np.repeat(np.arange(len(names)), [len(lengths[name]) for name in names])
    tree = DecisionTreeClassifier(max_leaf_nodes=LEAVES, random_state=0).fit(known, targets)
    return float((tree.predict(held[:, None]) == tiers).mean())


def _length_estimate(known: Array, scores: Array, held: Array, wanted: Array) -> float:
    """Return the mean squared error of a tree that estimates the complexity from the number of words."""
    from sklearn.tree import DecisionTreeRegressor

    tree = DecisionTreeRegressor(max_leaf_nodes=LEAVES, random_state=0).fit(known[:, None], scores)
    return float(np.mean((tree.predict(held[:, None]) - wanted) ** 2))
