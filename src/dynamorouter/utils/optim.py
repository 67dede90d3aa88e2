"""One optimizer step, the same for experts, routers, fusions and whole bases.

AdamW (Loshchilov and Hutter, 2019) under a schedule, with clipping and an overflow test. Parameters of a shorter
format than float32 are trained through float32 copies (Micikevicius et al., 2018): a small step would round to nothing
in bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST_SCALE = 2.0**14
"""Loss scale that float16 begins with."""


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that share a learning rate.

    Attributes:
        parameters: what is trained.
        learning_rate: at the schedule's peak.
        weight_decay: decoupled.
    """

    parameters: Sequence[Tensor]
    learning_rate: float
    weight_decay: float = 0.0


def decay_groups(parameters: Iterable[Tensor], learning_rate: float, weight_decay: float) -> list[Group]:
    """Group parameters for decoupled weight decay: matrices with it; vectors and scalars, such as biases, without."""
    matrices, others = list[Tensor](), list[Tensor]()
    for parameter in parameters:
        (matrices if parameter.dim() > 1 else others).append(parameter)
    return [Group(matrices, learning_rate, weight_decay), Group(others, learning_rate)]


def warmup_linear(step: int, total: int, warmup: float = 0.0) -> float:
    """Return the factor on the learning rate at a step, counted from 0.

    It rises over the share ``warmup`` of all ``total`` steps, and falls linearly to zero after that.
    """
    rise = max(1, round(total * warmup)) if warmup else 0
    return (step + 1) / (rise + 1) if step < rise else max(0.0, (total - step) / max(1, total - rise))


@dataclass(slots=True)
class LossScale:
    """What losses are multiplied by on the way back, so that small float16 gradients do not vanish.

    Attributes:
        value: the factor, 1 where no scaling is needed.
    """

    value: float = 1.0

    @staticmethod
    def of(dtype: torch.dtype) -> LossScale:
        """Return the scale to begin with for a base that computes in ``dtype``."""
        return LossScale(FIRST_SCALE if dtype == torch.float16 else 1.0)

    def lower(self) -> bool:
        """Halve the scale after an overflow; returns false where it is 1, so that the loss itself is to blame."""
        if self.value <= 1:
            return False
        self.value /= 2
        return True


class Optimizer:
    """AdamW over groups of leaf tensors whose gradients lie in their ``grad``.

    Args:
        groups: what is trained; empty groups are left out.
        clip: largest gradient norm over all groups; ``None`` clips nothing.
    """

    def __init__(self, groups: Iterable[Group], *, clip: float | None = None) -> None:
        groups = [group for group in groups if group.parameters]
        self.clip = math.inf if clip is None else clip
        self.parameters = [parameter for group in groups for parameter in group.parameters]
        self._masters = {p: p.detach().float() for p in self.parameters if p.dtype != torch.float32}
        self._peaks = [group.learning_rate for group in groups]
        self._adamw = torch.optim.AdamW(
            [
                {"params": [self._masters.get(p, p) for p in group.parameters], "weight_decay": group.weight_decay}
                for group in groups
            ],
            fused=True,
        )

    @torch.no_grad()
    def step(self, factor: float = 1.0, *, scale: float = 1.0) -> float:
        """Take one step with the gradients that are there, and forget them; left out where their norm is not finite.

        Args:
            factor: on the learning rates.
            scale: what the loss was multiplied by.

        Returns:
            The gradient's norm before clipping.
        """
        trained = []
        for parameter in self.parameters:
            if parameter.grad is None:
                continue
            gradient = parameter.grad.float()
            trained.append(self._masters.get(parameter, parameter))
            trained[-1].grad = gradient.div_(scale) if scale != 1 else gradient
        norm = float(torch.nn.utils.clip_grad_norm_(trained, self.clip))
        if math.isfinite(norm):
            for group, peak in zip(self._adamw.param_groups, self._peaks, strict=True):
                group["lr"] = peak * factor
            self._adamw.step()
            for parameter, master in self._masters.items():
                parameter.copy_(master)
        self.forget()
        return norm

    def forget(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters:
            parameter.grad = None
        self._adamw.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Return the moments, and float32 copies where there are any, under ``INDEX.NAME``."""
        return {
            f"{index}.{name}": value
            for index, parameter in enumerate(self.parameters)
            for name, value in self._state_of(parameter).items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what ``state`` returned."""
        for index, parameter in enumerate(self.parameters):
            prefix = f"{index}."
            values = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            master = self._masters.get(parameter, parameter)
            if "master" in values:
                master.copy_(values.pop("master"))
            if values:
                self._adamw.state[master] = {name: value.to(master.device) for name, value in values.items()}

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        master = self._masters.get(parameter)
        if master is None:
            return dict(self._adamw.state.get(parameter, {}))
        return {**self._adamw.state.get(master, {}), "master": master}
