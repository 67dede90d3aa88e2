"""How an expert's low-rank factors are shaped."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from dynamorouter.utils.options import Alias, Count, Number, Options, Rate, Size


class LoraConfig(Options):
    """The shape of one expert's LoRA factors (Hu et al., 2021)."""

    rank: Annotated[Count, Alias("r")] = 8
    """Width of the low-rank factors."""
    alpha: Annotated[Rate, Alias("lora_alpha")] = 16.0
    """Numerator of the scaling ``alpha / rank``."""
    rslora: Annotated[bool, Alias("use_rslora")] = False
    """Scale by ``alpha / sqrt(rank)`` instead (Kalajdzievski, 2023)."""
    dropout: Annotated[Number, Field(ge=0.0, lt=1.0), Alias("lora_dropout")] = 0.0
    """Dropout on the factors' input while training."""
    targets: Annotated[str | tuple[str, ...], Alias("target_modules")] = "all-linear"
    """``all-linear``, a regular expression over module names, or a list of names."""
    trunk_depth: Size = 0
    """Number of lowest blocks without experts; 0 puts experts everywhere."""

    @property
    def scaling(self) -> float:
        """The factor on ``B @ A``."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
