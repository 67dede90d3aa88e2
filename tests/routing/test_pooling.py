"""Pooling against a plain loop, and the calibration against a fine grid."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynamorouter.errors import RouterError
from dynamorouter.routing.base import RouterInput
from dynamorouter.routing.calibration import better_temperature, ece, fit_temperature, negative_log_likelihood
from dynamorouter.routing.nets import AttentionPool
from dynamorouter.routing.pooling import (
    SUM_OVER,
    first_token,
    last_token,
    masked_mean,
    pooled,
    pooled_all,
    statistics,
    to_pseudo_tokens,
    unpool,
    width_factor,
)
from dynamorouter.routing.registry import poolings


def ragged(batch: int, positions: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return random states ``(B, S, 5)`` and a mask with holes at either end."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(batch, positions, 5, generator=generator)
    start = torch.randint(0, positions, (batch, 1), generator=generator)
    length = torch.randint(1, positions + 1, (batch, 1), generator=generator)
    places = torch.arange(positions)
    return states, ((places >= start) & (places < start + length)).long()


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 5), positions=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_poolings_equal_a_plain_loop(batch: int, positions: int, seed: int) -> None:
    states, mask = ragged(batch, positions, seed)
    whole = RouterInput({1: states}, mask, [("", None)] * batch)
    for row in range(batch):
        tokens = states[row][mask[row].bool()]
        torch.testing.assert_close(masked_mean(states, mask)[row], tokens.mean(0))
        torch.testing.assert_close(first_token(states, mask)[row], tokens[0])
        torch.testing.assert_close(last_token(states, mask)[row], tokens[-1])
        both = torch.cat([tokens.mean(0), tokens[0], tokens.mean(0), tokens[-1]])
        joined = [pooled(whole, (1,), pooling)[row] for pooling in ("mean_cls", "mean_last")]
        torch.testing.assert_close(torch.cat(joined), both)
        summed = torch.cat([tokens.mean(0), tokens.sum(0) / SUM_OVER])
        torch.testing.assert_close(pooled(whole, (1,), "mean_sum")[row], summed)


@pytest.mark.parametrize("pooling", list(poolings))
@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 5), positions=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_a_condensed_batch_pools_to_the_same(pooling: str, batch: int, positions: int, seed: int) -> None:
    states, mask = ragged(batch, positions, seed)
    whole = RouterInput({0: states, 2: -states}, mask, [("a", "b")] * batch)
    small = to_pseudo_tokens(whole, pooling)
    few = 1 if pooling == "mean_sum" else width_factor(pooling)
    assert small.states[0].shape == (batch, few, 5)
    assert small.mask.shape == (batch, few)
    assert small.texts == whole.texts
    torch.testing.assert_close(pooled(small, (0, 2), pooling), pooled(whole, (0, 2), pooling), rtol=1e-5, atol=1e-5)
    again, counts = unpool(pooled(whole, (0,), pooling), pooling)
    torch.testing.assert_close(again, small.states[0])
    torch.testing.assert_close(counts, small.mask)


def test_condensing_names_an_unknown_pooling() -> None:
    states, mask = ragged(2, 3, 1)
    with pytest.raises(RouterError, match="did you mean 'mean_last'"):
        to_pseudo_tokens(RouterInput({0: states}, mask, [("", None)] * 2), "mean_lst")


def test_half_precision_is_averaged_in_float32() -> None:
    states, mask = ragged(3, 8, 1)
    low = masked_mean(states.bfloat16(), mask)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, masked_mean(states.bfloat16().float(), mask))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(masked_mean(states, mask), masked_mean(states.clone(), mask))
        assert masked_mean(states, mask).dtype == torch.float32


def test_row_without_tokens_is_zero() -> None:
    states = torch.ones(1, 3, 5)
    mask = torch.zeros(1, 3)
    assert masked_mean(states, mask).eq(0).all()
    pool = AttentionPool([2], 5)
    assert pool(RouterInput({2: states}, mask, [("", None)])).eq(0).all()


def test_layers_are_joined_in_the_order_asked_for() -> None:
    states, mask = ragged(2, 4, 3)
    batch = RouterInput({0: states, 3: states * 2}, mask, [("a", None)] * 2)
    torch.testing.assert_close(
        pooled(batch, (3, 0), "mean"), torch.cat([masked_mean(states * 2, mask), masked_mean(states, mask)], dim=1)
    )
    assert pooled_all([batch, batch], (0,), "cls").shape == (4, 5)
    with pytest.raises(RouterError, match="did you mean 'mean'"):
        pooled(batch, (0,), "means")


def test_attention_starts_as_the_masked_mean() -> None:
    states, mask = ragged(4, 6, 5)
    batch = RouterInput({1: states, 2: -states}, mask, [("a", None)] * 4)
    torch.testing.assert_close(AttentionPool([1, 2], 5)(batch), pooled(batch, (1, 2), "mean"))


def test_statistics_of_a_constant_feature_are_safe() -> None:
    features = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    mean, std = statistics(features)
    assert mean.tolist() == [2.0, 2.0]
    assert std.tolist() == [1.0, 1.0]


def test_rows_are_taken_in_the_order_asked_for() -> None:
    states, mask = ragged(3, 4, 6)
    batch = RouterInput({0: states}, mask, [("a", None), ("b", "c"), ("d", None)]).rows(torch.tensor([2, 0]))
    assert torch.equal(batch.states[0], states[[2, 0]])
    assert list(batch.texts) == [("d", None), ("a", None)]


def test_ece_of_known_cases() -> None:
    half = torch.full((10, 2), 0.5)
    assert ece(half, torch.tensor([0, 1] * 5)) == pytest.approx(0.0)
    sure = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    assert ece(sure, torch.tensor([0, 0, 0, 1])) == pytest.approx(0.25)
    assert ece(sure[:0], torch.zeros(0, dtype=torch.long)) == 0.0


def noisy(scale: float) -> tuple[Tensor, Tensor]:
    """Return logits ``scale`` times those that the targets were drawn from."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(4000, 4, generator=generator) * 2
    return logits * scale, torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)


@pytest.mark.parametrize("scale", [0.2, 1.0, 7.0])
def test_temperature_undoes_a_scale_and_lowers_the_error(scale: float) -> None:
    logits, targets = noisy(scale)
    temperature = fit_temperature(logits, targets)
    assert temperature == pytest.approx(scale, rel=0.06)
    grid = [math.exp(step / 50) for step in range(-150, 151)]
    best = min(negative_log_likelihood(logits, targets, value) for value in grid)
    assert negative_log_likelihood(logits, targets, temperature) <= best + 1e-9
    chosen = better_temperature(logits, targets, 1.0)
    assert ece((logits / chosen).softmax(1), targets) <= ece(logits.softmax(1), targets)


def test_temperature_stays_where_all_rows_are_right() -> None:
    logits = torch.eye(3) * 4
    assert better_temperature(logits, torch.arange(3), 0.7) == 0.7
