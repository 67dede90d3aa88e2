"""Pooling of hidden states into one vector per row, without copying them.

Letters: B batch, S positions, D width, L layers, P parts that a pooling joins, F = L * P * D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynamorouter.errors import RouterError, one_of, suggest
from dynamorouter.routing.base import RouterInput

SUM_OVER = 100.0
"""What sums are divided by, so that those of long rows fit into half precision."""


def layer_states(batch: RouterInput, layer: int) -> Tensor:
    """Return the hidden states of ``layer``, ``(B, S, D)``.

    Raises:
        RouterError: the batch does not hold that layer.
    """
    if layer not in batch.states:
        raise RouterError(
            f"the router reads layer {layer}, but the batch holds layers {sorted(batch.states)}; "
            "run the base at least that deep, or fit a router with other layers"
        )
    return batch.states[layer]


def weighted_sum(weights: Tensor, states: Tensor) -> Tensor:
    """Sum positions: ``(B, S)`` weights and ``(B, S, D)`` states to ``(B, D)`` float32."""
    with torch.autocast(device_type=states.device.type, enabled=False):
        return torch.bmm(weights.float().unsqueeze(1), states.float()).squeeze(1)


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Average the unmasked positions of ``(B, S, D)`` to ``(B, D)`` float32; a row without tokens gives zeros."""
    weights = mask.float()
    return weighted_sum(weights / weights.sum(dim=1, keepdim=True).clamp_min(1.0), states)


def masked_sum(states: Tensor, mask: Tensor) -> Tensor:
    """Add up the unmasked positions of ``(B, S, D)`` to ``(B, D)`` float32, over ``SUM_OVER``."""
    return weighted_sum(mask.float() / SUM_OVER, states)


def first_token(states: Tensor, mask: Tensor) -> Tensor:
    """Take the first unmasked position of ``(B, S, D)``, padding on either side, to ``(B, D)`` float32."""
    first = mask.ne(0).to(torch.int8).argmax(dim=1)
    return states[torch.arange(states.shape[0], device=states.device), first].float()


def last_token(states: Tensor, mask: Tensor) -> Tensor:
    """Take the last unmasked position of ``(B, S, D)``, padding on either side, to ``(B, D)`` float32.

    It closes the row: a separator that bears the second segment's embedding where the row is a pair, or the one
    position of a causal model that has seen all the others.
    """
    last = states.shape[1] - 1 - mask.ne(0).to(torch.int8).flip(1).argmax(dim=1)
    return states[torch.arange(states.shape[0], device=states.device), last].float()


def mean_and_first(states: Tensor, mask: Tensor) -> Tensor:
    """Join the masked mean and the first token of ``(B, S, D)`` to ``(B, 2 * D)`` float32."""
    return torch.cat([masked_mean(states, mask), first_token(states, mask)], dim=1)


def mean_and_last(states: Tensor, mask: Tensor) -> Tensor:
    """Join the masked mean and the last token of ``(B, S, D)`` to ``(B, 2 * D)`` float32."""
    return torch.cat([masked_mean(states, mask), last_token(states, mask)], dim=1)


def mean_and_sum(states: Tensor, mask: Tensor) -> Tensor:
    """Join the masked mean and the masked sum of ``(B, S, D)`` to ``(B, 2 * D)`` float32."""
    return torch.cat([masked_mean(states, mask), masked_sum(states, mask)], dim=1)


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": first_token,
    "last": last_token,
    "mean": masked_mean,
    "mean_cls": mean_and_first,
    "mean_last": mean_and_last,
    "mean_sum": mean_and_sum,
    "sum": masked_sum,
}
"""Poolings without parameters, by name."""


def parts(pooling: str) -> int:
    """Return P, how many vectors of the states' width ``pooling`` joins."""
    return pooling.count("_") + 1


def check_pooling(pooling: str, allowed: Sequence[str]) -> None:
    """Check the name of a pooling.

    Raises:
        RouterError: it is not allowed.
    """
    if pooling not in allowed:
        raise RouterError(f"unknown pooling {pooling!r}{suggest(pooling, allowed)}; allowed: {one_of(allowed)}")


def check_layers(layers: Sequence[int]) -> tuple[int, ...]:
    """Return the layers as a tuple.

    Raises:
        RouterError: there are none, one is negative, or one is named twice.
    """
    found = tuple(int(layer) for layer in layers)
    if not found or min(found) < 0 or len(set(found)) != len(found):
        raise RouterError(
            f"router layers are {list(layers)}; name at least one, each once, counted from 0 (embeddings)"
        )
    return found


def pooled(batch: RouterInput, layers: Sequence[int], pooling: str) -> Tensor:
    """Pool every layer and join them, ``(B, F)`` float32.

    Raises:
        RouterError: the pooling is unknown or a layer is missing.
    """
    check_pooling(pooling, tuple(POOLINGS))
    pool = POOLINGS[pooling]
    return torch.cat([pool(layer_states(batch, layer), batch.mask) for layer in layers], dim=1)


def pooled_all(inputs: Sequence[RouterInput], layers: Sequence[int], pooling: str) -> Tensor:
    """Pool several batches without gradients, ``(N, F)`` float32, rows in order."""
    with torch.no_grad():
        return torch.cat([pooled(batch, layers, pooling) for batch in inputs])


def unpool(features: Tensor, pooling: str) -> tuple[Tensor, Tensor]:
    """Return the fewest positions that pool to one layer's ``features`` ``(B, P * D)``.

    One vector is its own mean, sum, first and last. Of two positions one is the token ``t``, and the other
    ``2 m - t``, so that their mean is ``m``. A mean and a sum are one position that counts as often as the row has
    tokens.

    Returns:
        States ``(B, P, D)`` float32 and how often each position counts, ``(B, P)`` int64.
    """
    features = features.float()
    if parts(pooling) == 1:
        times = int(SUM_OVER) if pooling == "sum" else 1
        return features.unsqueeze(1), torch.full((len(features), 1), times, dtype=torch.int64, device=features.device)
    mean, other = features.chunk(2, dim=1)
    if pooling == "mean_sum":
        length = (mean * other).sum(dim=1) / mean.square().sum(dim=1).clamp_min(torch.finfo(mean.dtype).tiny)
        return mean.unsqueeze(1), (length * SUM_OVER).round().long().unsqueeze(1)
    both = [other, 2.0 * mean - other] if pooling == "mean_cls" else [2.0 * mean - other, other]
    return torch.stack(both, dim=1), torch.ones(len(mean), 2, dtype=torch.int64, device=features.device)


def to_pseudo_tokens(batch: RouterInput, pooling: str) -> RouterInput:
    """Return a batch of few positions that ``pooling`` turns into what it makes of ``batch``, but for rounding.

    Raises:
        RouterError: the pooling is unknown.
    """
    check_pooling(pooling, tuple(POOLINGS))
    found = {layer: unpool(POOLINGS[pooling](state, batch.mask), pooling) for layer, state in batch.states.items()}
    live = batch.mask.amax(dim=1, keepdim=True)
    counts = [count for _, count in found.values()]
    mask = live * counts[0] if counts else live
    return RouterInput(states={layer: states for layer, (states, _) in found.items()}, mask=mask, texts=batch.texts)


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of ``(N, F)`` per feature, ``(F,)`` each, float32.

    A feature that hardly varies gets a deviation of one, so that dividing by it is safe.
    """
    mean = features.double().mean(dim=0)
    std = features.double().std(dim=0, correction=0)
    return mean.float(), torch.where(std < 1e-6, torch.ones_like(std), std).float()


@dataclass(frozen=True, slots=True)
class FeatureSample:
    """What a router read of some of an expert's rows.

    Attributes:
        states: pooled hidden states by layer, ``{layer: (N, D)}`` float16.
        pooling: how they were pooled, ``mean`` or ``cls``.
    """

    states: Mapping[int, Tensor]
    pooling: str
