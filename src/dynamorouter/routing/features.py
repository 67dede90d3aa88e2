"""Pooling of hidden states into one vector per row, without copying them.

Letters: B batch, S positions, D width, L layers, F = L * D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dynamorouter.errors import RouterError, one_of, suggest
from dynamorouter.routing.base import RouterInput


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


def first_token(states: Tensor, mask: Tensor) -> Tensor:
    """Take the first unmasked position of ``(B, S, D)``, padding on either side, to ``(B, D)`` float32."""
    first = mask.ne(0).to(torch.int8).argmax(dim=1)
    return states[torch.arange(states.shape[0], device=states.device), first].float()


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cls": first_token, "mean": masked_mean}
"""Poolings without parameters, by name."""


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
    """Pool every layer and join them, ``(B, L * D)`` float32.

    Raises:
        RouterError: the pooling is unknown or a layer is missing.
    """
    check_pooling(pooling, tuple(POOLINGS))
    pool = POOLINGS[pooling]
    return torch.cat([pool(layer_states(batch, layer), batch.mask) for layer in layers], dim=1)


def pooled_all(inputs: Sequence[RouterInput], layers: Sequence[int], pooling: str) -> Tensor:
    """Pool several batches without gradients, ``(N, L * D)`` float32, rows in order."""
    with torch.no_grad():
        return torch.cat([pooled(batch, layers, pooling) for batch in inputs])


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of ``(N, F)`` per feature, ``(F,)`` each, float32.

    A feature that hardly varies gets a deviation of one, so that dividing by it is safe.
    """
    mean = features.double().mean(dim=0)
    std = features.double().std(dim=0, correction=0)
    return mean.float(), torch.where(std < 1e-6, torch.ones_like(std), std).float()
