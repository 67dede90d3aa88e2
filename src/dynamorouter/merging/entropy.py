"""How uncertain a head's answers are, differentiably: the entropy of the classes, tags or positions that it chooses of.

Letters: B windows, S positions, D width, C choices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dynamorouter.errors import MergeError, one_of
from dynamorouter.model.heads.classification import ClassificationHead
from dynamorouter.model.heads.span import SpanHead
from dynamorouter.model.heads.tagging import TagsHead
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.text.tokenize import TextPair, Window

Reader = Callable[[Tensor, Tensor, Sequence[Window], Sequence[TextPair]], Tensor]
"""From hidden states ``(B, S, D)``, mask ``(B, S)``, windows and texts to a mean entropy."""


def entropy_of(expert: Expert) -> Reader:
    """Return the function that reads an expert's uncertainty off hidden states.

    Raises:
        MergeError: its head generates text, which has no classes.
    """
    head = expert.head
    if isinstance(head, ClassificationHead):
        return lambda hidden, mask, windows, texts: _entropy(head.logits(hidden, mask)).mean()
    if isinstance(head, TagsHead):
        return lambda hidden, mask, windows, texts: _entropy(head.out(hidden[mask.bool()].float())).mean()
    if isinstance(head, SpanHead):
        return lambda hidden, mask, windows, texts: _span(head, hidden, windows, texts)
    raise MergeError(
        f"expert {expert.name!r} has a {expert.task.head} head, which has no classes to be certain about; allowed are "
        f"{one_of(('classification', 'tags', 'span'))}: take another method, or leave the expert out"
    )


def _entropy(logits: Tensor) -> Tensor:
    """Return the entropy of softmax ``(..., C)`` in nats."""
    logs = logits.float().log_softmax(dim=-1)
    return -(logs.exp() * logs).sum(dim=-1)


def _span(head: SpanHead, hidden: Tensor, windows: Sequence[Window], texts: Sequence[TextPair]) -> Tensor:
    """Return the mean entropy of the first and last position over the tokens of the context."""
    allowed = torch.zeros(hidden.shape[:2], dtype=torch.bool)
    for i, (window, (_, pair)) in enumerate(zip(windows, texts, strict=True)):
        context = 0 if pair is None else 1
        allowed[i, : len(window)] = torch.tensor([kind == context for kind in window.encoding.sequence_ids])
    logits = head.out(hidden.float()).masked_fill(~allowed.to(hidden.device)[..., None], -1e9)
    return _entropy(logits.transpose(1, 2)).mean()
