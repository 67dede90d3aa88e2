"""The router: which one, what it reads, how it is fitted."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from dynamorouter.errors import one_of, suggest
from dynamorouter.routing.registry import ATTENTION, poolings
from dynamorouter.utils.options import (
    PATIENCE,
    TRAIN_SAMPLES,
    Alias,
    BatchRows,
    Count,
    Epochs,
    Later,
    Number,
    OptimConfig,
    Rate,
    Rows,
    Share,
    Size,
    Weight,
)


class NetworkOptions(OptimConfig):
    """A router's network: what it reads of a layer, how large it is, and how it is fitted."""

    pooling: str = "mean_cls"
    """How tokens become a vector: ``cls`` (the first), ``last``, ``mean``, ``sum``, ``mean_cls``, ``mean_last`` or
    ``mean_sum`` (two joined), ``attention`` (learned), or one that a plugin brings."""
    hidden: Size = 128
    """Width of the hidden layer; 0 for none, a linear router."""
    dropout: Annotated[Number, Field(ge=0.0, lt=1.0)] = 0.3
    """Dropout on the features and on the hidden layer while fitting."""
    epochs: Epochs = 20
    """Most epochs over the rows."""
    learning_rate: Rate = 2e-3
    """Peak learning rate; it falls linearly with the epochs."""
    weight_decay: Weight = 0.5
    """Decoupled weight decay, on matrices alone."""
    batch_rows: BatchRows = 128
    """Rows per step."""
    patience: Annotated[Count, PATIENCE] = 5
    """Epochs without improvement after which fitting stops."""
    top_k: Count = 1
    """Experts that answer each row."""
    abstain_below: Share = 0.0
    """Confidence below which the router says that it does not know."""

    @field_validator("pooling")
    @classmethod
    def _known_pooling(cls, name: str) -> str:
        allowed = (ATTENTION, *poolings)
        if name not in allowed:
            raise ValueError(f"got {name!r}, which is no pooling{suggest(name, allowed)}; allowed: {one_of(allowed)}")
        return name


class RouterConfig(NetworkOptions):
    """The router: which one, what it reads, how it is fitted."""

    kind: str = "mlp"
    """Registered name of the router."""
    layers: tuple[Size, ...] | Literal["trunk"] = "trunk"
    """Hidden states it reads: 0 is the embeddings' output, i that of block i; ``trunk`` is 0 to ``trunk_depth``."""
    train_rows: Annotated[Rows, TRAIN_SAMPLES] = 1000
    """Rows per task; ``null`` is all."""
    expert_rows: Size = 2000
    """Rows per task of the experts' own train rows that the router learns from as well; 0 for none."""
    join_pairs: Annotated[Share, Alias("concat_pair_ratio")] = 0.5
    """Share of the pair rows that are also given as one run of text, so that such pairs are routed well too."""
    short_rows: Annotated[Share, Later()] = 0.0
    """Share of the single texts, and of questions' contexts, of which a sentence or a few words are also given, so that
    short texts are routed by what they say; the router is calibrated on such pieces, too."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further options of this kind of router."""
