"""Settings of the complexity recipe: how instructions are measured, scored and put into tiers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dynamorouter.utils.options import Count, Options, Rate, Share, Weight

Method = Literal["thresholds", "quantile", "kmeans"]


class ComplexityConfig(Options):
    """One instruction data set parted into tiers; the tasks of the run are the tiers, the simplest first."""

    pipeline: str = "auto"
    """spaCy pipeline: ``auto`` (an installed en_core_web_sm, else ``own``), ``own``, a package or a folder."""
    weights: dict[str, Weight] = Field(default_factory=dict)
    """Weights of features that differ from the defaults (length .2, syntactic .3, semantic_diversity .15,
    dependency_depth .15, response_length .2, which counts in tables alone)."""
    caps: dict[str, Rate] = Field(default_factory=dict)
    """Caps of features that differ from the defaults (length 50, syntactic 10, semantic_diversity 30,
    dependency_depth 10, response_length 100)."""
    tiers: Method = "quantile"
    """By fixed thresholds of the score, by quantiles of the train rows' scores, or by clusters of their features."""
    thresholds: tuple[Share, ...] = (0.3, 0.7)
    """Cuts of the score, ascending, for ``thresholds``."""
    quantiles: tuple[Share, ...] | None = None
    """Shares of the train rows below each cut, ascending; ``null`` makes tiers of the same size."""
    least_rows: Annotated[int, Field(ge=2)] = 20
    """Fewest train rows of a tier; with fewer the run stops and says what to do."""
    arms: bool = True
    """Report the language-model loss of the base, one LoRA of the same size, true tier, routed and uniform mixture."""
    arm_epochs: Count | None = None
    """Passes of the one LoRA over all rows; ``null`` takes those of the experts."""
