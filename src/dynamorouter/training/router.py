"""The router phase: what the router reads of each expert's rows, and fitting it on that.

Letters: B batch, S positions, D width, N rows, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dynamorouter.errors import RouterError
from dynamorouter.model.base.base import Base
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.text.batching import token_batches
from dynamorouter.model.text.prompts import prompt_windows
from dynamorouter.model.text.tokenize import TextPair
from dynamorouter.routing.arrow import prototype
from dynamorouter.routing.base import Need, Router, RouterData, RouterInput
from dynamorouter.routing.pooling import FeatureSample, pooled_all, to_pseudo_tokens, unpool
from dynamorouter.routing.registry import poolings
from dynamorouter.routing.serialization import build
from dynamorouter.utils.seeding import seeded

SKILL_ROWS = 256
"""Most rows of each expert whose features are kept in the library."""
READS_STATE = ("query", "key", "value", "q_proj", "k_proj", "v_proj", "q_lin", "k_lin", "v_lin", "c_attn", "query_proj")
"""Projections whose input is the hidden state that enters a block."""


def pooled_by(router: Router) -> str | None:
    """Return the pooling through which alone the router reads its layers, if it can be undone, else ``None``."""
    pooling = getattr(router, "pooling", None)
    if pooling not in poolings or not router.layers:
        return None
    return str(pooling) if poolings.get(str(pooling)).unpool else None


@torch.inference_mode()
def read_rows(
    base: Base, router: Router, rows: Sequence[TextPair], *, max_tokens: int, stride: int, budget: int
) -> tuple[list[RouterInput], list[int]]:
    """Run the trunk over rows and keep what the router reads.

    Returns:
        Batches, and the position in ``rows`` of each of their rows in order.
    """
    first = [w for w in prompt_windows(base, rows, max_tokens=max_tokens, stride=stride) if w.part == 0]
    inputs: list[RouterInput] = []
    order: list[int] = []
    pooling = pooled_by(router)
    for group in token_batches([len(window) for window in first], budget=budget):
        batch = base.encoder.collate([first[i].encoding for i in group], base.device)
        states = base.forward_to(batch, max(router.layers), keep=router.layers) if router.layers else {}
        states = {layer: states[layer] for layer in router.layers}
        read = RouterInput(states=states, mask=batch.mask, texts=[rows[i] for i in group])
        inputs.append(to_pseudo_tokens(read, pooling) if pooling else read)
        order += group
    return inputs, order


def concat_pairs(rows: Sequence[TextPair]) -> list[TextPair]:
    """Return each pair as one run of text, so that a router also learns pairs that arrive that way."""
    return [(f"{text} {pair}", None) for text, pair in rows if pair is not None]


def fit_router(
    kind: str,
    options: Mapping[str, Any],
    base: Base,
    experts: Sequence[Expert],
    train: Sequence[tuple[list[RouterInput], list[int]]],
    calibrate: tuple[list[RouterInput], list[int]] | None,
    *,
    seed: int,
    scores: Sequence[float] = (),
    balanced: bool = False,
) -> Router:
    """Fit a router.

    Args:
        kind: its registered name.
        options: its constructor's arguments.
        base: the router's base.
        experts: those it chooses among, in order.
        train: batches and the expert of each of their rows, from several sources.
        calibrate: the same of held-out rows, for the temperature.
        seed: of initial weights and order.
        scores: complexity of the rows of ``train``, in order, NaN where it is not known; for routers that learn it.
        balanced: let every expert count alike, however many rows it has.
    """
    router = build(kind, options)
    inputs = [batch for batches, _ in train for batch in batches]
    targets = torch.tensor([target for _, experts_of_rows in train for target in experts_of_rows], device=base.device)
    data = RouterData(
        inputs,
        targets,
        generator=seeded(seed, "router"),
        experts=len(experts),
        complexities=None if all(map(math.isnan, scores)) else torch.tensor(scores),
        balanced=balanced,
    )
    needed: dict[str, Any] = {need: MAKERS[need](base, experts) for need in router.needs}
    router.fit(replace(data, **needed))
    if calibrate is not None:
        router.calibrate(calibrate[0], torch.tensor(calibrate[1], device=base.device))
    return router


def prototypes(base: Base, experts: Sequence[Expert]) -> Tensor:
    """Return for every expert the directions its lowest adapted block responds to most: ``(E, P, D)``.

    Raises:
        RouterError: an expert changes no projection that reads a block's input.
    """
    directions = []
    for expert in experts:
        block = f"{base.blocks_name}.{expert.lora.trunk_depth}."
        of_expert = [
            prototype(change.a, change.b)
            for layer, change in sorted(expert.factors.items())
            if layer.startswith(block) and layer.rsplit(".", 1)[-1] in READS_STATE
        ]
        if not of_expert:
            raise RouterError(
                f"arrow routes by query, key or value projections, but expert {expert.name!r} changes none in block "
                f"{expert.lora.trunk_depth}; choose another router, or train it with experts.targets=all-linear"
            )
        directions.append(torch.stack(of_expert))
    most = max(len(rows) for rows in directions)
    padded = [torch.cat([rows, rows[:1].expand(most - len(rows), -1)]) for rows in directions]
    return torch.stack(padded).to(base.device)


MAKERS: Mapping[Need, Callable[[Base, Sequence[Expert]], Tensor]] = {"prototypes": prototypes}
"""How what a router needs of the experts is made, by the field of ``RouterData`` that it fills."""


def make_skill(router: Router, batches: Sequence[RouterInput], rows: Sequence[int]) -> FeatureSample | None:
    """Keep what the router read of rows at even distances; ``None`` where it reads more than a fixed pooling."""
    pooling = pooled_by(router)
    if pooling is None:
        return None
    count = min(len(rows), SKILL_ROWS)
    chosen = [rows[number * len(rows) // count] for number in range(count)]
    states = {layer: pooled_all(batches, (layer,), pooling)[chosen].to("cpu", torch.float16) for layer in router.layers}
    return FeatureSample(states=states, pooling=pooling)


def from_features(skill: FeatureSample, device: torch.device) -> RouterInput:
    """Give a kept skill the form of a batch of few positions, which pools to it again."""
    tokens = {layer: unpool(state.to(device), skill.pooling) for layer, state in skill.states.items()}
    states = {layer: positions for layer, (positions, _) in tokens.items()}
    _, mask = next(iter(tokens.values()))
    return RouterInput(states=states, mask=mask, texts=[("", None)] * len(mask))
