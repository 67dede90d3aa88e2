"""What a system answers for one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynamorouter.metrics.base import entities
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.text import word_spans

EDGES = ".,;:!?\"'()[]{}"


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row's route and answer.

    Attributes:
        text: the row's text.
        pair: its second text or context.
        task: the task of the chosen expert; ``None`` when the router abstained.
        expert: name of the chosen expert; ``None`` when the router abstained.
        route: probability of every expert, by name; only the one that was asked for when the task was given.
        confidence: calibrated probability of the chosen expert.
        answer: what the expert's head answers; ``None`` when the router abstained.
    """

    text: str
    pair: str | None
    task: str | None
    expert: str | None
    route: Mapping[str, float]
    confidence: float
    answer: Answer | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; tags come with the entities that they mark."""
        values: dict[str, Any] = {
            "text": self.text,
            "pair": self.pair,
            "task": self.task,
            "expert": self.expert,
            "route": {name: round(value, 6) for name, value in self.route.items()},
            "confidence": round(self.confidence, 6),
            "answer": None if self.answer is None else self.answer.value,
            "answer_score": None if self.answer is None or self.answer.kind == "text" else round(self.answer.score, 6),
        }
        if self.answer is not None and self.answer.kind == "tags":
            values["entities"] = entity_list(self.text, self.answer.value)
        return values


def entity_list(text: str, tags: Sequence[str]) -> list[dict[str, Any]]:
    """Return the entities that BIO tags mark, with characters from and to; punctuation at the edges is left out."""
    spans = word_spans(text)
    found = []
    for kind, first, last in sorted(entities(tags), key=lambda entity: entity[1]):
        start, end = spans[first][0], spans[last - 1][1]
        while end > start + 1 and text[end - 1] in EDGES:
            end -= 1
        while start < end - 1 and text[start] in EDGES:
            start += 1
        found.append({"type": kind, "text": text[start:end], "start": start, "end": end})
    return found
