"""How uncertain a head's answers are, differentiably: the entropy of the classes, tags or positions that it chooses of.

Letters: B windows, S positions, D width, C choices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from dynamorouter.errors import MergeError, one_of
from dynamorouter.model.heads.base import EncoderHead, choosing_heads
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.text.tokenize import TextPair, Window

Reader = Callable[[Tensor, Tensor, Sequence[Window], Sequence[TextPair]], Tensor]
"""From hidden states ``(B, S, D)``, mask ``(B, S)``, windows and texts to a mean entropy."""


def entropy_of(expert: Expert) -> Reader:
    """Return the function that reads an expert's uncertainty off hidden states.

    Raises:
        MergeError: its head does not choose among classes, as one that generates text.
    """
    head = expert.head
    if not isinstance(head, EncoderHead) or not head.has_choices:
        raise MergeError(
            f"expert {expert.name!r} has a {expert.task.head} head, which has no classes to be certain about; allowed "
            f"are {one_of(choosing_heads())}: take another method, or leave the expert out"
        )

    def read(hidden: Tensor, mask: Tensor, windows: Sequence[Window], rows: Sequence[TextPair]) -> Tensor:
        return _entropy(head.choices(head.logits(hidden, mask), mask, windows, rows)).mean()

    return read


def _entropy(logits: Tensor) -> Tensor:
    """Return the entropy of softmax ``(..., C)`` in nats."""
    logs = logits.float().log_softmax(dim=-1)
    return -(logs.exp() * logs).sum(dim=-1)
