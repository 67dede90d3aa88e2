"""One body under several heads: what is trained moves, the best epoch is put back, short formats lose no step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dynamorouter.errors import TrainingError
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.config import BaseSpec
from dynamorouter.model.heads.base import build_head
from dynamorouter.model.lora.config import LoraConfig
from dynamorouter.model.lora.expert import fresh_factors
from dynamorouter.model.lora.mount import mount
from dynamorouter.training.config import ExpertConfig
from dynamorouter.training.multitask import (
    AdapterBackbone,
    FrozenBackbone,
    FullBackbone,
    TaskHead,
    fit_shared,
    shared_examples,
)
from dynamorouter.utils.optim import Optimizer
from dynamorouter.utils.seeding import seeded
from support.banks import Change
from support.builders import MOOD, NAMES, make_rows


def test_a_shared_body_learns_and_a_frozen_one_stays(tiny_base: Any) -> None:
    base = tiny_base()
    lora = LoraConfig(rank=4, alpha=8, trunk_depth=2, dropout=0.0)
    task_heads = []
    for task in (MOOD, NAMES):
        head = build_head(task, base.width).initialise(seeded(0, task.name))
        task_heads.append(TaskHead(task, head, make_rows(task, 24)))
    factors = fresh_factors(base, lora, seed=0, name="one")
    mounted = mount(base, [Change("one", factors)])
    examples = shared_examples(base, task_heads)
    assert {example.expert for example in examples} == {0, 1}
    config = ExpertConfig(epochs=4, batch_rows=8, learning_rate=0.01)
    body = AdapterBackbone(mounted, examples, depth=2, limit=1 << 24, budget=256)
    before = [p.detach().clone() for p in body.parameters()]
    scores = iter([0.1, 0.9, 0.3, 0.2])
    kept: list[list[torch.Tensor]] = []

    def validate() -> float:
        kept.append([p.detach().clone() for p in body.parameters()])
        return next(scores)

    assert fit_shared(body, task_heads, examples, config=config, seed=0, validate=validate) == [0.1, 0.9, 0.3, 0.2]
    after = body.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(kept[1], after, strict=True))  # the best pass is put back

    frozen = FrozenBackbone(base, examples, limit=1 << 24, budget=256)
    assert frozen.parameters() == []
    hidden, mask = frozen.hidden([0, 5])
    for row, position in enumerate((0, 5)):
        length = len(examples[position])
        alone, _ = FrozenBackbone(base, examples, limit=0, budget=256).hidden([position])
        torch.testing.assert_close(hidden[row, :length], alone[0, :length])
        assert int(mask[row].sum()) == length


def full_backbone(folder: Path, dtype: torch.dtype) -> tuple[FullBackbone, TaskHead]:
    base = Base.load(BaseSpec(name="tiny", path=str(folder)), device=torch.device("cpu"), dtype=dtype)
    task_head = TaskHead(MOOD, build_head(MOOD, base.width).initialise(seeded(0, "mood")), make_rows(MOOD, 24))
    return FullBackbone(base, shared_examples(base, [task_head])), task_head


def test_a_whole_base_in_bfloat16_moves_by_steps_that_it_cannot_hold(tiny_folder: Any) -> None:
    body, task_head = full_backbone(tiny_folder("bert"), torch.bfloat16)
    norms = [p for name, p in body.base.model.named_parameters() if name.endswith("LayerNorm.weight")]
    assert all(torch.equal(p, torch.ones_like(p)) and torch.equal(p - 1e-4, p) for p in norms)
    config = ExpertConfig(epochs=40, batch_rows=8, learning_rate=1e-4, warmup=0.0)
    head_before = [p.detach().clone() for p in task_head.head.parameters()]
    fit_shared(body, [task_head], body.examples, config=config, seed=0, train_heads=False)
    assert all(torch.equal(a, b) for a, b in zip(head_before, task_head.head.parameters(), strict=True))
    assert any(not torch.equal(p, torch.ones_like(p)) for p in norms)
    assert all(p.dtype == torch.bfloat16 for p in body.parameters())


def test_a_whole_base_leaves_out_steps_whose_gradient_overflows(
    tiny_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss scale falls until the gradients fit; where there is no scale to lower, training stops with an error."""
    norms: list[float] = []
    step = Optimizer.step

    def overflowing(self: Optimizer, factor: float = 1.0, *, scale: float = 1.0) -> float:
        if scale > 2.0**11:
            self.parameters[0].grad = torch.full_like(self.parameters[0], torch.inf)
        before = [p.detach().clone() for p in self.parameters]
        norms.append(step(self, factor, scale=scale))
        same = all(torch.equal(a, b) for a, b in zip(before, self.parameters, strict=True))
        assert same is not math.isfinite(norms[-1])
        return norms[-1]

    monkeypatch.setattr(Optimizer, "step", overflowing)
    config = ExpertConfig(epochs=2, batch_rows=8, learning_rate=1e-3)
    body, task_head = full_backbone(tiny_folder("bert"), torch.float16)
    fit_shared(body, [task_head], body.examples, config=config, seed=0)
    assert [math.isfinite(norm) for norm in norms] == [False, False, False, True, True, True]
    monkeypatch.setattr(Optimizer, "step", lambda self, factor, scale: math.inf)
    body, task_head = full_backbone(tiny_folder("bert"), torch.float32)
    with pytest.raises(TrainingError, match=r"gradient norm inf at step 1; lower its learning rate, which is 0\.001"):
        fit_shared(body, [task_head], body.examples, config=config, seed=0)
