"""What informed methods see of the data: moments, gradients, losses and entropies agree with plain computations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynamorouter.errors import MergeError
from dynamorouter.merging.calibration import observed
from dynamorouter.merging.merge import merge_experts
from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.base import build_head
from dynamorouter.model.lora.config import LoraConfig
from dynamorouter.model.lora.expert import Expert, fresh_factors
from dynamorouter.model.lora.factors import Factors
from dynamorouter.model.lora.gates import RowGate
from dynamorouter.model.lora.mount import mount
from dynamorouter.model.text.examples import batch_of, make_examples
from dynamorouter.utils.seeding import seeded
from support.builders import ASK, CONFIGS, MOOD, NAMES, make_rows

ROWS = {task.name: make_rows(task, 10) for task in (MOOD, NAMES, ASK)}


def make(base: Base, *, trunk: int = 0) -> list[Expert]:
    experts = []
    for task in (MOOD, NAMES, ASK):
        lora = LoraConfig(rank=2, alpha=4, trunk_depth=trunk)
        factors = {
            layer: Factors(f.a, 0.2 * torch.randn(f.b.shape, generator=seeded(1, task.name, layer)), f.scaling)
            for layer, f in fresh_factors(base, lora, seed=0, name=task.name).items()
        }
        head = build_head(task, base.width).initialise(seeded(0, task.name)).eval()
        experts.append(Expert(task.name, task, "tiny", factors, head, lora))
    return experts


def folded(base: Base, expert: Expert, coefficients: dict[str, float], experts: list[Expert]) -> None:
    """Put the experts' changes into the bare base's own weights."""
    for layer in expert.factors:
        weight = base.model.get_parameter(f"{layer}.weight")
        for other in experts:
            f = other.factors[layer]
            weight.data += coefficients.get(other.name, 0.0) * f.scaling * f.b @ f.a


def test_second_moments_are_those_of_the_inputs(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base()
    experts = make(base)
    with observed("grams", base, experts, ROWS) as seen:
        pass
    assert not base.context.mounts  # as before
    folded(base, experts[0], {"mood": 1.0}, experts)
    layer = "encoder.layer.2.intermediate.dense"
    inputs: list[Tensor] = []
    hook = base.model.get_submodule(layer).register_forward_hook(lambda m, args, out: inputs.append(args[0][0]))
    for example in make_examples(base, experts[0].head, MOOD, ROWS["mood"], expert=0):
        base.forward(batch_of(base, [example]), None)
    hook.remove()
    tokens = torch.cat(inputs).double()
    torch.testing.assert_close(seen["mood"][layer], tokens.T @ tokens / len(tokens), rtol=1e-4, atol=1e-5)
    assert set(seen) == {"mood", "names", "ask"}


def test_squared_gradients_are_those_of_each_example(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base()
    experts = make(base)
    with observed("fisher", base, experts, ROWS) as seen:
        pass
    folded(base, experts[1], {"names": 1.0}, experts)
    layer = "encoder.layer.1.attention.self.value"
    weight = base.model.get_parameter(f"{layer}.weight").requires_grad_()
    squares = torch.zeros_like(weight)
    examples = make_examples(base, experts[1].head, NAMES, ROWS["names"], expert=0)
    for example in examples:
        batch = batch_of(base, [example])
        loss = experts[1].head.loss(base.forward(batch, None), batch.mask, [example.target]).sum()
        squares += torch.autograd.grad(loss, weight)[0] ** 2
    torch.testing.assert_close(seen["names"][layer], squares / len(examples), rtol=1e-3, atol=1e-7)
    assert all(p.grad is None for expert in experts for p in expert.head.parameters())


@pytest.mark.parametrize("trunk", [0, 2])
def test_the_loss_of_coefficients_is_that_of_the_merge(tiny_base: Callable[..., Base], trunk: int) -> None:
    base = tiny_base()
    experts = make(base, trunk=trunk)
    weights = {"ask": 0.2, "mood": 0.7, "names": -0.4}
    with observed("objective", base, experts, ROWS) as judge:
        vector = torch.tensor([weights[name] for name in sorted(weights)], dtype=torch.float64)
        got = judge(dict.fromkeys(experts[0].factors, vector))
    merged = merge_experts(experts, method="linear", weights=weights)
    _mounted = mount(base, [dataclasses.replace(experts[0], factors=merged.factors)])
    losses = []
    for expert in experts:
        examples = make_examples(base, expert.head, expert.task, ROWS[expert.name], expert=0)
        total = 0.0
        for example in examples:
            batch = batch_of(base, [example])
            with torch.no_grad():
                hidden = base.forward(batch, RowGate(torch.tensor([0])))
                total += float(expert.head.loss(hidden, batch.mask, [example.target]).sum())
        losses.append(total / sum(example.units for example in examples))
    assert got == pytest.approx(sum(losses) / 3, rel=1e-4)


def test_entropy_looks_at_no_target_and_is_differentiable(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base()
    experts = make(base, trunk=2)
    unlabelled = {name: [dataclasses.replace(r, target=None) for r in rows] for name, rows in ROWS.items()}  # type: ignore[arg-type]
    with observed("entropy", base, experts, unlabelled) as judge:
        point = torch.full((3,), 0.3, dtype=torch.float64, requires_grad=True)
        value = judge(dict.fromkeys(experts[0].factors, point))
        (slope,) = torch.autograd.grad(value, point)
        step = 1e-2
        for e in range(3):
            moved = [point.detach() + s * step * torch.eye(3)[e] for s in (1, -1)]
            up, down = (float(judge(dict.fromkeys(experts[0].factors, each)).detach()) for each in moved)
            assert (up - down) / (2 * step) == pytest.approx(float(slope[e]), abs=2e-3)
        result = merge_experts(experts, method="adamerging", entropy=judge, steps=20, learning_rate=0.05)
    before, after = (float(x) for x in result.notes[0].split("entropy ")[1].split(" in")[0].split(" -> "))
    assert after < before


@pytest.mark.parametrize("method", ["regmean", "fisher", "lorahub", "layerwise"])
def test_methods_run_on_what_is_collected(tiny_base: Callable[..., Base], method: str) -> None:
    from dynamorouter.merging.registry import merges

    base = tiny_base()
    experts = make(base, trunk=2)
    need = merges.get(method).needs
    assert need is not None
    options: dict[str, Any] = {"budget": 12} if need == "objective" else {}
    with observed(need, base, experts, ROWS, limit=6) as seen:
        result = merge_experts(experts, method=method, **{need: seen}, **options)
        other = merge_experts(list(reversed(experts)), method=method, **{need: seen}, **options)
    assert all(torch.equal(f.a, other.factors[layer].a) for layer, f in result.factors.items())
    assert all(bool(f.a.isfinite().all()) for f in result.factors.values())


def test_missing_rows_and_writing_heads_are_refused(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base()
    experts = make(base)
    with pytest.raises(MergeError, match="no rows of 'ask'"), observed("grams", base, experts, {**ROWS, "ask": []}):
        pass
    assert not base.context.mounts


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_peft_loads_a_merge_over_every_architecture(
    tiny_base: Callable[..., Base], architecture: str, tmp_path: Path
) -> None:
    from peft import PeftModel

    from dynamorouter.model.lora.peft import save_adapter
    from dynamorouter.system.merge import _compare

    base, other = tiny_base(architecture), tiny_base(architecture)
    experts = make(base, trunk=2)[:2]
    result = merge_experts(experts, method="ties", output="energy=0.8")
    assert len(set(result.ranks.values())) > 1  # ranks differ from layer to layer
    save_adapter(tmp_path, result.factors, result.lora, base)
    PeftModel.from_pretrained(other.parts.language or other.model, str(tmp_path)).eval()
    merged = dataclasses.replace(experts[0], factors=result.factors, lora=result.lora)
    found = _compare(base, other, merged)
    assert found["ok"] and found["difference"] < 1e-5 < found["change"]
    louder = {layer: Factors(f.a, f.b, 1.1 * f.scaling) for layer, f in result.factors.items()}
    wrong = _compare(base, other, dataclasses.replace(merged, factors=louder))
    assert not wrong["ok"] and wrong["difference"] > 1e-4
