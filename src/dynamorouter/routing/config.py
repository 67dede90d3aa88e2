"""The router: which one, what it reads, how it is fitted."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from dynamorouter.utils.options import Count, Options, Rate, Rows, Share, Size, Weight


class RouterSettings(Options):
    """The router: which one, what it reads, how it is fitted."""

    kind: str = "mlp"
    """Registered name of the router."""
    layers: tuple[Size, ...] | Literal["trunk"] = "trunk"
    """Hidden states it reads: 0 is the embeddings' output, i that of block i; ``trunk`` is 0 to ``trunk_depth``."""
    pooling: Literal["attention", "cls", "last", "mean", "mean_cls", "mean_last", "mean_sum", "sum"] = "mean_cls"
    """The first position, the last, the masked mean, the mean joined with either, or learned attention."""
    hidden: Size = 128
    """Width of the hidden layer; 0 for none, a linear router."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    """Dropout on the features and on the hidden layer while fitting."""
    epochs: Count = 20
    """Most passes over the rows."""
    learning_rate: Rate = 2e-3
    """Peak learning rate."""
    weight_decay: Weight = 0.5
    """Decoupled weight decay."""
    batch_rows: Count = 128
    """Rows per step."""
    patience: Count = 5
    """Epochs without improvement after which fitting stops."""
    train_rows: Rows = 1000
    """Rows per task; ``null`` is all."""
    expert_rows: Size = 2000
    """Rows per task of the experts' own train rows that the router learns from as well; 0 for none."""
    join_pairs: Share = 0.5
    """Share of the pair rows that are also given as one run of text, so that such pairs are routed well too."""
    top_k: Count = 1
    """Experts that answer each row."""
    abstain_below: Share = 0.0
    """Confidence below which the router says that it does not know."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further options of this kind of router."""
