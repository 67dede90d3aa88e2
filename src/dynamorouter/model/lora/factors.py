"""Low-rank factors of one expert on one layer (Hu et al., 2021), and how they are shaped.

Letters: D in, O out, R rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Factors:
    """One expert's change to one layer, ``scaling * B @ A``.

    Attributes:
        a: ``(R, D)``.
        b: ``(O, R)``.
        scaling: alpha / R, or alpha / sqrt(R) with rsLoRA (Kalajdzievski, 2023).
    """

    a: Tensor
    b: Tensor
    scaling: float


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """How an expert's factors are shaped.

    Attributes:
        rank: R.
        alpha: numerator of the scaling.
        rslora: scale by ``alpha / sqrt(R)`` rather than ``alpha / R`` (Kalajdzievski, 2023).
        dropout: on the experts' input, in training.
        targets: ``"all-linear"``, ``"attention"``, a regular expression or name endings.
        trunk_depth: blocks below this one carry no factors.
    """

    rank: int = 8
    alpha: float = 16.0
    rslora: bool = False
    dropout: float = 0.05
    targets: str | tuple[str, ...] = "all-linear"
    trunk_depth: int = 0

    @property
    def scaling(self) -> float:
        """The factor on ``B @ A``."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
