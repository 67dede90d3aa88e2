"""What a system answers for one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynamorouter.inference.policy import ABSTAINED, ROUTED, Assignment
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.text.tokenize import TextPair
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.kinds.base import kind_of_answer


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
        """Return plain JSON values, with what the kind of answer adds, such as the entities that tags mark."""
        values: dict[str, Any] = {
            "text": self.text,
            "pair": self.pair,
            "task": self.task,
            "expert": self.expert,
            "route": {name: round(value, 6) for name, value in self.route.items()},
            "confidence": round(self.confidence, 6),
            "answer": None if self.answer is None else self.answer.value,
            "answer_score": None,
        }
        if self.answer is not None:
            kind = kind_of_answer(self.answer.kind)
            values["answer_score"] = None if kind.is_generative else round(self.answer.score, 6)
            values |= kind.details(self.text, self.answer.value)
        return values


def predictions(
    rows: Sequence[TextPair], experts: Sequence[Expert], assignment: Assignment, answers: Sequence[Answer | None]
) -> list[Prediction]:
    """Make the prediction of each row.

    Args:
        rows: texts and pairs.
        experts: of the system, in the order of their indices.
        assignment: which of them answer the rows.
        answers: what they answer.
    """
    names = [expert.name for expert in experts]
    routed = [] if assignment.route is None else assignment.route.probabilities.tolist()
    row_predictions = []
    for position, (row, expert_index, answer) in enumerate(zip(rows, assignment.experts, answers, strict=True)):
        named = assignment.named[position] != ROUTED
        route = {names[expert_index]: 1.0} if named else dict(zip(names, routed[position], strict=True))
        expert = None if expert_index == ABSTAINED else experts[expert_index]
        row_predictions.append(
            Prediction(
                text=row[0],
                pair=row[1],
                task=None if expert is None else expert.task.name,
                expert=None if expert is None else expert.name,
                route=route,
                confidence=max(route.values()),
                answer=answer,
            )
        )
    return row_predictions
