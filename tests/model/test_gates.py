"""A gate that the package does not have runs through banks, training and generation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dynamorouter.inference.generation.generate import generate
from dynamorouter.model.base.gate import Gate
from dynamorouter.model.lora.bank import LoraBank
from dynamorouter.model.lora.gates import FusionGate, RowGate, SoftGate
from dynamorouter.tasks.task import Generation
from support.banks import WIDTH, make_bank, pass_over
from support.tinylm import add_experts, load_lm, make_prompts


class TwiceGate(Gate):
    """Every row uses one expert, at twice its strength."""

    def __init__(self, experts: Tensor) -> None:
        self.rows = experts.shape[0]
        self.experts = experts

    def apply(self, bank: LoraBank, x: Tensor) -> Tensor:
        delta = torch.einsum("bor,brd,b->bod", *(side[self.experts] for side in (bank.b, bank.a, bank.scaling)))
        return bank.base(x) + 2 * torch.einsum("bod,bsd->bso", delta, x)  # type: ignore[no-any-return]

    def select(self, rows: Tensor) -> TwiceGate:
        return TwiceGate(self.experts[rows])


def twice(experts: Tensor) -> RowGate:
    """The same by a gate of the package."""
    return RowGate(experts, torch.full(experts.shape, 2.0))


def test_a_toy_gate_runs_through_a_bank() -> None:
    bank, experts = make_bank(), torch.tensor([1, 0, 4])
    x = torch.randn(3, 2, WIDTH, dtype=torch.float64)
    for shape in (x, x[:, 0]):
        with torch.no_grad(), pass_over(bank).hold(TwiceGate(experts)):
            got = bank(shape)
        with torch.no_grad(), pass_over(bank).hold(twice(experts)):
            torch.testing.assert_close(got, bank(shape))


def test_a_toy_gate_trains_and_generates(lm_folder: Callable[[str], Path], tmp_path: Path) -> None:
    base = load_lm(lm_folder("gpt2"))
    _, mounted = add_experts(base, tmp_path, "gpt2", 3)
    prompts = make_prompts()
    experts = torch.tensor([0, 1, 2, 2, 1, 0])
    batch = base.encoder.pad(prompts, [[0] * len(prompt) for prompt in prompts], base.device)
    gradients = []
    direction = torch.randn(base.width, generator=torch.Generator().manual_seed(0))
    for gate in (TwiceGate(experts), twice(experts)):
        for bank in mounted.banks.values():
            bank.zero_grad()
        base.forward(batch, gate)[batch.mask.bool()].matmul(direction).sum().backward()
        gradients.append([bank.b.grad for bank in mounted.banks.values()])
    for own, row in zip(*gradients, strict=True):
        torch.testing.assert_close(own, row, rtol=5e-3, atol=5e-3)
    options = [Generation(max_new_tokens=size) for size in (2, 9, 9, 2, 2, 9)]  # rows leave the batch early
    got = generate(base, prompts, TwiceGate(experts), options)
    assert got == generate(base, prompts, twice(experts), options)
    assert got != generate(base, prompts, RowGate(experts), options)


def test_only_a_gate_without_experts_is_empty() -> None:
    assert RowGate(torch.tensor([-1, -1])).is_empty and not RowGate(torch.tensor([-1, 0])).is_empty
    assert not SoftGate(torch.zeros(2, 3)).is_empty and not TwiceGate(torch.tensor([0])).is_empty
    assert not FusionGate({}, torch.tensor([0]), rows=1).is_empty
