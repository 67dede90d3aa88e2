"""What an expert answers to one row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]
"""Why a text ends: by itself or by a stop text, or because it is as long as is allowed."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a head answers for one row.

    Attributes:
        kind: what it is; an answer of another kind than the task's scores zero.
        value: a label, one tag per whitespace-separated word, the answer's text, or several texts written for one row.
        score: the head's own probability of the answer, between 0 and 1; ``None`` where there is none, as of a text.
        nll: negative log-likelihood of the target's text, in nats, summed over its tokens; ``None`` where it was not
            measured.
        tokens: how many tokens ``nll`` is the sum over.
        label_probabilities: of every label, for a label; they sum to 1.
        finish_reason: why a generated text ends.
        prompt_tokens, completion_tokens: how many tokens were read and written for a generated text.
    """

    kind: str
    value: str | list[str]
    score: float | None
    nll: float | None = None
    tokens: int = 0
    label_probabilities: Mapping[str, float] | None = None
    finish_reason: FinishReason | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
