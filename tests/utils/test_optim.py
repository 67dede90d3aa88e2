"""One optimizer step: against torch's AdamW, in short formats, after an overflow, and restored."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dynamorouter.utils.optim import Group, LossScale, Optimizer, decay_groups, warmup_linear


def parameters(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, generator=generator).to(dtype), torch.randn(3, generator=generator).to(dtype)]


def set_gradients(tensors: list[torch.Tensor], step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    for tensor in tensors:
        tensor.grad = (scale * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)


def test_learning_rate_rises_then_falls_to_zero() -> None:
    rates = [warmup_linear(step, 30, 0.2) for step in range(31)]
    assert rates[0] < rates[3] < rates[6] == max(rates) == 1.0
    assert rates[29] == pytest.approx(1 / 24) and all(a >= b for a, b in itertools.pairwise(rates[6:]))
    assert rates[30] == 0.0
    assert [warmup_linear(step, 4) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_steps_equal_torchs_adamw_with_clipping_and_schedule(scale: float) -> None:
    ours, theirs = parameters(), parameters()
    optimizer = Optimizer(decay_groups(ours, 0.1, 0.3), clip=0.5)
    groups = [{"params": [theirs[0]], "weight_decay": 0.3}, {"params": [theirs[1]], "weight_decay": 0.0}]
    oracle = torch.optim.AdamW(groups, lr=0.1)
    for step in range(5):
        set_gradients(ours, step, scale)
        set_gradients(theirs, step)
        for group in oracle.param_groups:
            group["lr"] = 0.1 * (1 - step / 5)
        expected = torch.nn.utils.clip_grad_norm_(theirs, 0.5)
        oracle.step()
        assert optimizer.step(1 - step / 5, scale=scale) == pytest.approx(float(expected), rel=1e-5)
        assert all(tensor.grad is None for tensor in ours)
    for tensor, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(tensor, wanted)


def test_steps_too_small_for_bfloat16_add_up_in_its_float32_copy() -> None:
    weights = [torch.ones(8, 8, dtype=torch.bfloat16)]
    optimizer = Optimizer([Group(weights, 1e-4)])
    assert weights[0][0, 0] - 1e-4 == 1.0  # what a plain step would leave
    for _ in range(100):
        weights[0].grad = torch.ones_like(weights[0])
        optimizer.step()
    torch.testing.assert_close(weights[0].float(), torch.full((8, 8), 0.99), atol=0.004, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gradient_that_overflows_leaves_the_step_out(dtype: torch.dtype) -> None:
    tensors = parameters(dtype)
    optimizer = Optimizer([Group(tensors, 0.1)], clip=1.0)
    before = [tensor.clone() for tensor in tensors]
    set_gradients(tensors, 0)
    assert tensors[0].grad is not None
    tensors[0].grad[0, 0] = torch.inf
    assert not math.isfinite(optimizer.step())
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
    set_gradients(tensors, 0)
    assert math.isfinite(optimizer.step())  # nothing of the overflow is left in the moments
    for tensor, old in zip(tensors, before, strict=True):
        assert tensor.isfinite().all() and not torch.equal(tensor, old)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_optimizer_goes_on_with_the_same_bits(dtype: torch.dtype) -> None:
    whole, first = parameters(dtype), parameters(dtype)
    one, two = Optimizer(decay_groups(whole, 0.01, 0.1)), Optimizer(decay_groups(first, 0.01, 0.1))
    for step in range(3):
        set_gradients(whole, step)
        one.step()
        set_gradients(first, step)
        two.step()
    rest = [tensor.clone() for tensor in first]
    three = Optimizer(decay_groups(rest, 0.01, 0.1))
    three.restore({name: tensor.clone() for name, tensor in two.state().items()})
    for step in range(3, 6):
        set_gradients(whole, step)
        one.step()
        set_gradients(rest, step)
        three.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, rest, strict=True))
    assert all(torch.equal(value, three.state()[name]) for name, value in one.state().items())


def test_the_loss_scale_halves_down_to_one() -> None:
    assert LossScale.of(torch.bfloat16).value == LossScale.of(torch.float32).value == 1.0
    scale = LossScale.of(torch.float16)
    halvings = 0
    while scale.lower():
        halvings += 1
    assert halvings == 14 and scale.value == 1.0
    assert not LossScale.of(torch.float32).lower()
