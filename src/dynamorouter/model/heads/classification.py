"""One label for a text or a pair.

Letters: B windows, S positions, D width, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dynamorouter.errors import DataError
from dynamorouter.model.heads.base import EncoderHead, WindowTarget, heads, take_linear
from dynamorouter.model.text.tokenize import TextPair, Window
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.record import Record

if TYPE_CHECKING:
    from dynamorouter.model.base.base import Base
    from dynamorouter.model.base.config import BaseSpec

DENSE_TANH = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Architectures whose classifier is a dense layer, tanh and an output layer over the first token."""


@heads.register("classification")
class ClassificationHead(EncoderHead):
    """A label for a text or a pair, from the first window.

    Args:
        pooling: ``mean`` over the tokens, or ``cls`` for the first one.
        dense: a tanh layer before the output, as in BERT's and RoBERTa's own classifiers.
        dropout: before the output, in training.
    """

    kind = "classification"
    has_choices = True

    def __init__(
        self, width: int, labels: Sequence[str], *, pooling: str = "mean", dense: bool = False, dropout: float = 0.1
    ) -> None:
        super().__init__(width, labels, pooling=pooling, dense=dense, dropout=dropout)
        self.pooling = pooling
        self.dense = nn.Linear(width, width) if dense else None
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, len(self.labels))

    @classmethod
    def base_options(cls, base: BaseSpec) -> dict[str, Any]:
        """Pool as the base's settings say."""
        return {"pooling": base.pooling}

    @classmethod
    def import_state(cls, tensors: dict[str, Tensor], base: Base) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Take up the classifier of BERT, which stands on the base's own pooler, or that of RoBERTa and its kin."""
        options = {"pooling": "cls", "dense": True}
        if "classifier.out_proj.weight" in tensors and base.config.model_type in DENSE_TANH:
            dense = take_linear(tensors, "classifier.dense", "dense")
            return options, {**dense, **take_linear(tensors, "classifier.out_proj", "out")}
        if base.config.model_type == "bert":
            pooler = base.model.get_submodule("pooler.dense").named_parameters()
            dense = {f"dense.{leaf}": value.detach().clone() for leaf, value in pooler}
            return options, {**dense, **take_linear(tensors, "classifier", "out")}
        return {}, {}

    @property
    def is_linear(self) -> bool:
        """Whether there is no tanh before the output."""
        return self.dense is None

    def logits(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return ``(B, C)`` in float32."""
        if self.pooling == "cls":
            pooled = hidden[:, 0].float()
        else:
            weights = mask.to(hidden.dtype)
            pooled = (torch.bmm(weights[:, None], hidden)[:, 0] / weights.sum(dim=1, keepdim=True)).float()
        if self.dense is not None:
            pooled = torch.tanh(self.dense(self.dropout(pooled) if self.pooling == "cls" else pooled))
        return self.out(self.dropout(pooled))  # type: ignore[no-any-return]

    def target(self, window: Window, record: Record) -> WindowTarget | None:
        """Return the label's index; only a text's first window is trained on."""
        if window.part:
            return None
        if record.target not in self.labels:
            raise DataError(f"row {record.id!r}: label {record.target!r} is not one of {', '.join(self.labels)}")
        return np.array([self.labels.index(str(record.target))])

    def units(self, target: WindowTarget) -> int:
        """One per text."""
        return 1

    def loss(self, hidden: Tensor, mask: Tensor, targets: Sequence[WindowTarget]) -> Tensor:
        """Cross-entropy of each text."""
        gold = torch.as_tensor(np.concatenate(list(targets)), device=hidden.device)
        return functional.cross_entropy(self.logits(hidden, mask), gold, reduction="none")

    def parts(self, logits: Tensor, windows: Sequence[Window], rows: Sequence[TextPair]) -> list[Any]:
        """Return the probability of every class in each window."""
        return list(logits.softmax(dim=-1).tolist())

    def merge(self, parts: Sequence[Any], row: TextPair) -> Answer:
        """Take the first window's label, as in training."""
        chances = dict(zip(self.labels, parts[0], strict=True))
        best = max(chances, key=chances.__getitem__)
        return Answer("classification", best, chances[best], label_probabilities=chances)

    def choices(self, logits: Tensor, mask: Tensor, windows: Sequence[Window], rows: Sequence[TextPair]) -> Tensor:
        """Return the logits as they are: each window is a choice among the labels."""
        return logits
