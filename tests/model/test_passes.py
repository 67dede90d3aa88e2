"""Laws of batched passes: a batch equals each example alone, and a cached trunk changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from dynamorouter.model.base.base import Base
from dynamorouter.model.base.gate import Gate
from dynamorouter.model.heads.base import Head, build_head
from dynamorouter.model.lora.config import LoraConfig
from dynamorouter.model.lora.expert import Expert, fresh_factors
from dynamorouter.model.lora.factors import Factors
from dynamorouter.model.lora.gates import RowGate
from dynamorouter.model.lora.mount import Mounted, mount
from dynamorouter.model.text.examples import TrainingExample, batch_of, make_examples
from dynamorouter.model.text.passes import ExamplePasses
from dynamorouter.model.text.trunk_cache import TrunkCache
from dynamorouter.utils.seeding import seeded
from support.builders import NAMES, make_rows

DEPTH = 2


def mounted(base: Base) -> tuple[Mounted, Head, list[TrainingExample]]:
    """Mount two random experts above the trunk, and return them with a head and examples of unequal lengths."""
    lora = LoraConfig(rank=2, alpha=8, trunk_depth=DEPTH)
    head = build_head(NAMES, base.width).initialise(seeded(0)).eval()
    experts = []
    for name in ("one", "two"):
        factors = {
            layer: Factors(change.a, torch.randn(change.b.shape, generator=seeded(1, name, layer)), change.scaling)
            for layer, change in fresh_factors(base, lora, seed=0, name=name).items()
        }
        experts.append(Expert(name, NAMES, "tiny", factors, head, lora))
    return mount(base, experts), head, make_examples(base, head, NAMES, make_rows(NAMES, 12), expert=0)


@pytest.mark.parametrize("budget", [None, 40, 4096])
@pytest.mark.parametrize("cached", [0, 700, 1 << 30])
def test_losses_are_those_of_each_example_alone(
    tiny_base: Callable[..., Base], budget: int | None, cached: int
) -> None:
    base = tiny_base()
    experts, head, examples = mounted(base)
    expert_of = [i % 2 for i in range(len(examples))]

    def gates(positions: Sequence[int]) -> Gate:
        return RowGate(torch.tensor([expert_of[i] for i in positions]))

    trunk = TrunkCache(base, examples, depth=DEPTH, limit=cached, budget=64) if cached else None
    if trunk is not None:
        trunk.fill()
    passes = ExamplePasses(base, examples, budget=budget, trunk=trunk)
    assert sorted(i for batch in passes.batches for i in batch.positions) == list(range(len(examples)))
    alone = []
    with torch.inference_mode():
        for i, example in enumerate(examples):
            batch = batch_of(base, [example])
            hidden = base.forward(batch, gates([i]))
            alone.append(float(head.loss(hidden, batch.mask, [example.target])))
    losses = passes.losses(head, gates)
    assert [units for _, units in losses] == [example.units for example in examples]
    assert [loss for loss, _ in losses] == pytest.approx(alone, abs=1e-4)
    assert max(alone) - min(alone) > 0.1
    if budget is not None:
        assert all(max(len(examples[i]) for i in b.positions) * len(b) <= budget for b in passes.batches if len(b) > 1)
    else:
        assert all(len(batch) == 1 for batch in passes.batches)
    experts.close()
