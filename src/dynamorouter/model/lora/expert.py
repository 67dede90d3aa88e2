"""An expert: LoRA factors and a head for one task, with a card that says where they come from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.base import Head
from dynamorouter.model.lora.config import LoraConfig
from dynamorouter.model.lora.factors import Factors
from dynamorouter.model.lora.fusion import Fusion
from dynamorouter.model.lora.targets import target_layers
from dynamorouter.tasks.task import Task
from dynamorouter.utils.seeding import seeded


@dataclass(frozen=True, slots=True)
class Expert:
    """What answers one task.

    Attributes:
        name: unique in its library; by default the task's name.
        task: the task it answers.
        base: name of its base model.
        factors: name of a linear layer of the base to the expert's change to it.
        head: turns hidden states into answers.
        lora: how the factors were shaped.
        card: where it comes from: base digest, data fingerprint, scores, versions.
        fusion: answers the task in the expert's place, by mixing it with others; ``None`` where none was kept.
    """

    name: str
    task: Task
    base: str
    factors: Mapping[str, Factors]
    head: Head
    lora: LoraConfig
    card: dict[str, Any] = field(default_factory=dict)
    fusion: Fusion | None = None

    @property
    def answering_head(self) -> Head:
        """The head that answers: the fusion's where there is one."""
        return self.head if self.fusion is None else self.fusion.head

    @property
    def is_generative(self) -> bool:
        """Whether it answers with a text that it writes token by token."""
        return self.head.is_generative

    def parameters(self) -> int:
        """Count the numbers in factors and head, and in the fusion."""
        adapters = sum(f.a.numel() + f.b.numel() for f in self.factors.values())
        fused = [] if self.fusion is None else self.fusion.parameters()
        return adapters + sum(p.numel() for p in (*self.head.parameters(), *fused))


def fresh_factors(base: Base, lora: LoraConfig, *, seed: int, name: str) -> dict[str, Factors]:
    """Draw new factors as PEFT does: A from Kaiming's uniform, B zero, so that the expert begins as the base."""
    factors = {}
    for layer in target_layers(base, lora.targets, trunk_depth=lora.trunk_depth):
        out, width = base.shape(layer)
        bound = 1 / math.sqrt(width)
        a = torch.empty(lora.rank, width).uniform_(-bound, bound, generator=seeded(seed, name, layer))
        factors[layer] = Factors(a=a, b=torch.zeros(out, lora.rank), scaling=lora.scaling)
    return factors


def share_factors(experts: Sequence[Expert]) -> list[Expert]:
    """Let experts that one merge has made hold the same factors, which are then in memory once.

    Their cards name the merge; factors that differ nevertheless stay as they are.
    """
    first_of_merge: dict[tuple[str, str], Expert] = {}
    shared = []
    for expert in experts:
        merge = expert.card.get("merge")
        sharer = first_of_merge.setdefault((expert.base, str(merge["name"])), expert) if merge else expert
        shared.append(
            replace(expert, factors=sharer.factors) if _same_factors(sharer.factors, expert.factors) else expert
        )
    return shared


def _same_factors(first: Mapping[str, Factors], second: Mapping[str, Factors]) -> bool:
    return first is second or (
        first.keys() == second.keys()
        and all(
            f.scaling == second[layer].scaling
            and torch.equal(f.a, second[layer].a)
            and torch.equal(f.b, second[layer].b)
            for layer, f in first.items()
        )
    )
