"""One label for a text or a pair.

Letters: B windows, S positions, D width, C labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dynamorouter.errors import AdapterError, DataError
from dynamorouter.model.base.kinds import is_bidirectional
from dynamorouter.model.heads.base import EncoderHead, WindowTarget, heads, take_linear
from dynamorouter.model.text.tokenize import TextPair, Window
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.record import Record

if TYPE_CHECKING:
    from dynamorouter.model.base.base import Base
    from dynamorouter.model.base.config import BaseSpec

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": functional.relu,
    "gelu": functional.gelu,
}


@dataclass(frozen=True, slots=True)
class _Form:
    """How a task model classifies by the first token: a dense layer, an activation and an output layer.

    Attributes:
        dense: the dense layer's name, without its body's.
        activation: what follows it.
        out: the output layer's name.
    """

    dense: str
    activation: str
    out: str


_ROBERTA = _Form("classifier.dense", "tanh", "classifier.out_proj")
FORMS = {
    "bert": _Form("pooler.dense", "tanh", "classifier"),
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert", "mpnet"), _ROBERTA),
    "electra": _Form("classifier.dense", "gelu", "classifier.out_proj"),
    "distilbert": _Form("pre_classifier", "relu", "classifier"),
    **dict.fromkeys(("deberta", "deberta-v2"), _Form("pooler.dense", "gelu", "classifier")),
}
"""By type of model; decoders have none, but an output layer over the last token."""


@heads.register("classification")
class ClassificationHead(EncoderHead):
    """A label for a text or a pair, from the first window.

    Args:
        pooling: ``mean`` over the tokens, ``cls`` for the first one, or ``last`` for the last.
        dense: a layer before the output, as in BERT's and RoBERTa's own classifiers.
        dropout: before the output, in training.
        activation: what follows the dense layer: ``tanh``, ``relu`` or ``gelu``.
        bias: whether the output layer has one; those of decoders' classifiers have none.
    """

    kind = "classification"
    has_choices = True
    output_layer = "out"

    def __init__(
        self,
        width: int,
        labels: Sequence[str],
        *,
        pooling: str = "mean",
        dense: bool = False,
        dropout: float = 0.1,
        activation: str = "tanh",
        bias: bool = True,
    ) -> None:
        unusual: dict[str, Any] = {} if activation == "tanh" else {"activation": activation}
        unusual |= {} if bias else {"bias": bias}
        super().__init__(width, labels, pooling=pooling, dense=dense, dropout=dropout, **unusual)
        self.pooling = pooling
        self.activation = activation
        self.dense = nn.Linear(width, width) if dense else None
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, len(self.labels), bias=bias)

    @classmethod
    def base_options(cls, base: BaseSpec) -> dict[str, Any]:
        """Pool as the base's settings say."""
        return {"pooling": base.pooling}

    @classmethod
    def import_state(cls, tensors: dict[str, Tensor], base: Base) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Take up the classifier of an encoder (see ``FORMS``), or the ``score`` layer of a decoder.

        Raises:
            AdapterError: it stands on a layer whose weights nobody has kept.
        """
        if "score.weight" in tensors:
            state = take_linear(tensors, "score", "out")
            return {"pooling": "last", "dense": False, "bias": "out.bias" in state}, state
        form = FORMS.get(base.config.model_type)
        if form is None or f"{form.out}.weight" not in tensors:
            return {}, {}
        options = {"pooling": "cls", "dense": True, "activation": form.activation}
        return options, {**_dense(form, tensors, base), **take_linear(tensors, form.out, "out")}

    def export_state(self, base: Base) -> dict[str, Tensor] | None:
        """Return the weights as the base's sequence classifier has them, if it computes the same."""
        state = self.state_dict()
        plain = self.dense is None and "out.bias" not in state
        if not is_bidirectional(base.config) and self.pooling == "last" and plain:
            return {"score.weight": state["out.weight"]}
        form = FORMS.get(base.config.model_type)
        fits = form is not None and self.pooling == "cls" and self.activation == form.activation
        if form is None or not fits or self.dense is None or "out.bias" not in state:
            return None
        names = {"dense": form.dense, "out": form.out}
        return {f"{names[key.partition('.')[0]]}.{key.partition('.')[2]}": value for key, value in state.items()}

    @property
    def is_linear(self) -> bool:
        """Whether there is no activation before the output."""
        return self.dense is None

    def logits(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return ``(B, C)`` in float32."""
        if self.pooling == "cls":
            pooled = hidden[:, 0].float()
        elif self.pooling == "last":
            last = mask.shape[1] - 1 - mask.flip(1).long().argmax(dim=1)  # (B,)
            pooled = hidden[torch.arange(len(hidden), device=hidden.device), last].float()
        else:
            weights = mask.to(hidden.dtype)
            pooled = (torch.bmm(weights[:, None], hidden)[:, 0] / weights.sum(dim=1, keepdim=True)).float()
        if self.dense is not None:
            inputs = self.dropout(pooled) if self.pooling == "cls" else pooled
            pooled = ACTIVATIONS[self.activation](self.dense(inputs))
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


def _dense(form: _Form, tensors: dict[str, Tensor], base: Base) -> dict[str, Tensor]:
    """Take the dense layer out of an adapter's tensors, or else the base's own."""
    if f"{form.dense}.weight" in tensors:
        return take_linear(tensors, form.dense, "dense")
    base_names = {leaf: f"{form.dense}.{leaf}" for leaf in ("weight", "bias")}
    if not set(base_names.values()) <= base.weights.keys() - base.missing:
        module = form.dense.partition(".")[0]
        raise AdapterError(
            f"the adapter's classifier stands on {form.dense!r}, whose weights are neither in the adapter nor in base "
            f"{base.spec.name!r}: they were drawn at random and not saved; train it with "
            f"modules_to_save=['classifier', {module!r}]"
        )
    return {f"dense.{leaf}": base.weights[name].detach().float().cpu().clone() for leaf, name in base_names.items()}
