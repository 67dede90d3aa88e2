"""Random experts over a base, for benchmarks of the bank, and the same ones in PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dynamorouter.model.base.base import Base
from dynamorouter.model.lora.factors import Factors
from dynamorouter.model.lora.mount import Mounted, mount
from dynamorouter.model.lora.targets import target_layers


@dataclass(frozen=True)
class RandomExpert:
    """An expert without a head."""

    name: str
    factors: Mapping[str, Factors]


def mount_random(
    base: Base, targets: str | list[str], *, experts: int, rank: int, scaling: float, trunk: int = 0
) -> Mounted:
    """Mount experts e0, e1, ... over the layers that the targets name, the same each time."""
    generator = torch.Generator().manual_seed(1)
    layers = {layer: base.shape(layer) for layer in target_layers(base, targets, trunk_depth=trunk)}
    drawn = [
        RandomExpert(
            f"e{i}",
            {
                layer: Factors(
                    0.02 * torch.randn(rank, width, generator=generator),
                    0.02 * torch.randn(out, rank, generator=generator),
                    scaling,
                )
                for layer, (out, width) in layers.items()
            },
        )
        for i in range(experts)
    ]
    return mount(base, drawn)


def copy_to_peft(mounted: Mounted, model: Any, *, prefix: str = "") -> None:
    """Write the mounted experts into adapters of the same names of a PEFT model."""
    modules = dict(model.base_model.model.named_modules())
    with torch.no_grad():
        for name in mounted.slots:
            for layer, factors in mounted.factors(name).items():
                modules[prefix + layer].lora_A[name].weight.copy_(factors.a)
                modules[prefix + layer].lora_B[name].weight.copy_(factors.b)
