"""Pooling of hidden states into one vector per row, without copying them.

Letters: B batch, S positions, D width, L layers, P vectors that a pooling joins, F = L * P * D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynamorouter.errors import RouterError, one_of, suggest
from dynamorouter.routing.base import Pooling, Positions, RouterInput
from dynamorouter.routing.registry import ATTENTION, poolings

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


def pooling(
    name: str, *, width_factor: int = 1, unpool: Callable[[Tensor], Positions] | None = None
) -> Callable[[Callable[[Tensor, Tensor], Tensor]], Pooling]:
    """Return a decorator that makes a pooling of a function and registers it; see ``Pooling``."""

    def add(function: Callable[[Tensor, Tensor], Tensor]) -> Pooling:
        return poolings.register(name, home=function.__module__)(Pooling(name, function, width_factor, unpool))

    return add


def as_one_position(features: Tensor) -> Positions:
    """Return a vector ``(B, D)`` as one position: it is its own mean, first and last."""
    return features.unsqueeze(1), _times(features, 1)


def as_summed_position(features: Tensor) -> Positions:
    """Return a sum ``(B, D)`` over ``SUM_OVER`` as one position that counts so often."""
    return features.unsqueeze(1), _times(features, int(SUM_OVER))


def as_mean_and_length(features: Tensor) -> Positions:
    """Return a mean and a sum ``(B, 2 * D)`` as one position that counts as often as the row has tokens."""
    mean, total = features.chunk(2, dim=1)
    length = (mean * total).sum(dim=1) / mean.square().sum(dim=1).clamp_min(torch.finfo(mean.dtype).tiny)
    return mean.unsqueeze(1), (length * SUM_OVER).round().long().unsqueeze(1)


def as_first_and_other(features: Tensor) -> Positions:
    """Return a mean ``m`` and a first token ``t``, ``(B, 2 * D)``, as ``t`` and ``2 m - t``, whose mean is ``m``."""
    mean, token = features.chunk(2, dim=1)
    return torch.stack([token, 2.0 * mean - token], dim=1), _times(features, 1).expand(-1, 2)


def as_other_and_last(features: Tensor) -> Positions:
    """Return a mean ``m`` and a last token ``t``, ``(B, 2 * D)``, as ``2 m - t`` and ``t``, whose mean is ``m``."""
    mean, token = features.chunk(2, dim=1)
    return torch.stack([2.0 * mean - token, token], dim=1), _times(features, 1).expand(-1, 2)


def _times(features: Tensor, count: int) -> Tensor:
    return torch.full((len(features), 1), count, dtype=torch.int64, device=features.device)


@pooling("mean", unpool=as_one_position)
def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Average the unmasked positions of ``(B, S, D)`` to ``(B, D)`` float32; a row without tokens gives zeros."""
    weights = mask.float()
    return weighted_sum(weights / weights.sum(dim=1, keepdim=True).clamp_min(1.0), states)


@pooling("sum", unpool=as_summed_position)
def masked_sum(states: Tensor, mask: Tensor) -> Tensor:
    """Add up the unmasked positions of ``(B, S, D)`` to ``(B, D)`` float32, over ``SUM_OVER``."""
    return weighted_sum(mask.float() / SUM_OVER, states)


@pooling("cls", unpool=as_one_position)
def first_token(states: Tensor, mask: Tensor) -> Tensor:
    """Take the first unmasked position of ``(B, S, D)``, padding on either side, to ``(B, D)`` float32."""
    first = mask.ne(0).to(torch.int8).argmax(dim=1)
    return states[torch.arange(states.shape[0], device=states.device), first].float()


@pooling("last", unpool=as_one_position)
def last_token(states: Tensor, mask: Tensor) -> Tensor:
    """Take the last unmasked position of ``(B, S, D)``, padding on either side, to ``(B, D)`` float32.

    It closes the row: a separator that bears the second segment's embedding where the row is a pair, or the one
    position of a causal model that has seen all the others.
    """
    last = states.shape[1] - 1 - mask.ne(0).to(torch.int8).flip(1).argmax(dim=1)
    return states[torch.arange(states.shape[0], device=states.device), last].float()


@pooling("mean_cls", width_factor=2, unpool=as_first_and_other)
def mean_and_first(states: Tensor, mask: Tensor) -> Tensor:
    """Join the masked mean and the first token of ``(B, S, D)`` to ``(B, 2 * D)`` float32."""
    return torch.cat([masked_mean(states, mask), first_token(states, mask)], dim=1)


@pooling("mean_last", width_factor=2, unpool=as_other_and_last)
def mean_and_last(states: Tensor, mask: Tensor) -> Tensor:
    """Join the masked mean and the last token of ``(B, S, D)`` to ``(B, 2 * D)`` float32."""
    return torch.cat([masked_mean(states, mask), last_token(states, mask)], dim=1)


@pooling("mean_sum", width_factor=2, unpool=as_mean_and_length)
def mean_and_sum(states: Tensor, mask: Tensor) -> Tensor:
    """Join the masked mean and the masked sum of ``(B, S, D)`` to ``(B, 2 * D)`` float32."""
    return torch.cat([masked_mean(states, mask), masked_sum(states, mask)], dim=1)


def width_factor(name: str) -> int:
    """Return how many vectors of the states' width a pooling joins; learned attention makes one."""
    return 1 if name == ATTENTION else poolings.get(name).width_factor


def check_pooling(name: str, allowed: Iterable[str]) -> None:
    """Check the name of a pooling.

    Raises:
        RouterError: it is not allowed.
    """
    if name not in allowed:
        raise RouterError(f"unknown pooling {name!r}{suggest(name, allowed)}; allowed: {one_of(allowed)}")


def check_layers(layers: Sequence[int]) -> tuple[int, ...]:
    """Return the layers as a tuple.

    Raises:
        RouterError: there are none, one is negative, or one is named twice.
    """
    numbers = tuple(int(layer) for layer in layers)
    if not numbers or min(numbers) < 0 or len(set(numbers)) != len(numbers):
        raise RouterError(
            f"router layers are {list(layers)}; name at least one, each once, counted from 0 (embeddings)"
        )
    return numbers


def pooled(batch: RouterInput, layers: Sequence[int], name: str) -> Tensor:
    """Pool every layer and join them, ``(B, F)`` float32.

    Raises:
        RouterError: the pooling is unknown or a layer is missing.
    """
    check_pooling(name, poolings)
    pool = poolings.get(name)
    return torch.cat([pool(layer_states(batch, layer), batch.mask) for layer in layers], dim=1)


def pooled_all(inputs: Sequence[RouterInput], layers: Sequence[int], name: str) -> Tensor:
    """Pool several batches without gradients, ``(N, F)`` float32, rows in order."""
    with torch.no_grad():
        return torch.cat([pooled(batch, layers, name) for batch in inputs])


def unpool(features: Tensor, name: str) -> Positions:
    """Return the fewest positions that pool to one layer's ``features`` ``(B, P * D)``.

    Raises:
        RouterError: the pooling has no such positions.
    """
    shrink = poolings.get(name).unpool
    if shrink is None:
        raise RouterError(f"pooling {name!r} cannot be undone: it says no unpool; keep whole batches instead")
    return shrink(features.float())


def to_pseudo_tokens(batch: RouterInput, name: str) -> RouterInput:
    """Return a batch of few positions that a pooling turns into what it makes of ``batch``, but for rounding.

    Raises:
        RouterError: the pooling is unknown, or cannot be undone.
    """
    check_pooling(name, poolings)
    pool = poolings.get(name)
    positions = {layer: unpool(pool(states, batch.mask), name) for layer, states in batch.states.items()}
    live = batch.mask.amax(dim=1, keepdim=True)
    counts = [count for _, count in positions.values()]
    mask = live * counts[0] if counts else live
    return RouterInput(states={layer: states for layer, (states, _) in positions.items()}, mask=mask, texts=batch.texts)


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
