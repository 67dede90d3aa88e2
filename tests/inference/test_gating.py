"""Gates of assigned rows: slots of shared factors, mixtures on one base, where experts begin, fusions apart."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dynamorouter.inference.gating import ExpertGates
from dynamorouter.inference.policy import Assignment
from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.base import build_head
from dynamorouter.model.lora.config import LoraConfig
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.lora.gates import RowGate
from support.builders import MOOD


def make_gates(base: Base) -> ExpertGates:
    """Three experts on one base, which begin at blocks 3, 1 and 2, and one on another; the first two share a slot."""
    experts = [
        Expert(f"e{i}", MOOD, name, {}, build_head(MOOD, base.width), LoraConfig(rank=2, trunk_depth=depth))
        for i, (name, depth) in enumerate([("tiny", 3), ("tiny", 1), ("tiny", 2), ("other", 0)])
    ]
    return ExpertGates({"tiny": base, "other": base}, experts, [0, 0, 1, 0])


def test_a_row_begins_at_the_lowest_of_what_is_mixed_for_it_on_its_base(tiny_base: Callable[..., Base]) -> None:
    gates = make_gates(tiny_base())
    assert [gates.begins(row, Assignment.fixed([0, 1, 2])) for row in range(3)] == [3, 1, 2]
    experts = torch.tensor([[0, 2], [0, 1], [0, 3], [2, 1]])
    weights = torch.tensor([[0.6, 0.4], [1.0, 0.0], [0.5, 0.5], [0.0, 0.0]])
    mixed = Assignment.fixed([0, 0, 0, 2], (experts, weights))
    assert [gates.begins(row, mixed) for row in range(4)] == [2, 3, 3, 2]


def test_a_gate_has_the_slots_of_its_rows_and_no_expert_of_another_base(tiny_base: Callable[..., Base]) -> None:
    gates = make_gates(tiny_base())
    alone = gates.gate([2, 0], Assignment.fixed([0, 1, 2]))
    assert isinstance(alone, RowGate) and alone.experts.flatten().tolist() == [1, 0]
    experts, weights = torch.tensor([[2, 3], [1, 0], [3, 2]]), torch.tensor([[0.7, 0.3], [0.6, 0.4], [0.9, 0.1]])
    mixed = gates.gate([1, 0], Assignment.fixed([2, 0, 3], (experts, weights)))
    assert isinstance(mixed, RowGate) and mixed.weights is not None
    assert mixed.experts[0].tolist() == [0, 0] and mixed.experts[1, 0] == 1
    assert torch.equal(mixed.weights, torch.tensor([[0.6, 0.4], [0.7, 0.0]])), "an expert elsewhere weighs nothing"
    other = gates.gate([2], Assignment.fixed([2, 0, 3], (experts, weights)))
    assert isinstance(other, RowGate) and other.weights is not None
    assert other.experts[0, 0] == 0 and torch.equal(other.weights, torch.tensor([[0.9, 0.0]]))
