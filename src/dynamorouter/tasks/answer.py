"""What an expert answers to one row."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """What a head answers for one row.

    Attributes:
        kind: what it is; an answer of another kind than the task's scores zero.
        value: a label, one tag per whitespace-separated word, the answer's text, or several texts written for one row.
        score: the head's own probability of the answer, between 0 and 1; 1 for a text, where it is not computed.
        nll: negative log-likelihood of the target's text, in nats, summed over its tokens; ``None`` where it was not
            measured.
        tokens: how many tokens ``nll`` is the sum over.
    """

    kind: str
    value: str | list[str]
    score: float
    nll: float | None = None
    tokens: int = 0
