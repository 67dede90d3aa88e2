"""What a system answers for one row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynamorouter.inference.policy import BARE, BARE_BASE, ROUTED, Assignment
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
        task: the task of the chosen expert; ``base`` where the bare base answers, ``None`` when the router abstained.
        expert: name of the chosen expert; ``None`` when none answers.
        route: probability of every expert, by name; only the one that was asked for when the task was given.
        confidence: calibrated probability of the chosen expert, 1 when the task was given; ``None`` when none answers.
        answer: what the expert's head answers; ``None`` when the router abstained.
    """

    text: str
    pair: str | None
    task: str | None
    expert: str | None
    route: Mapping[str, float]
    confidence: float | None
    answer: Answer | None

    @property
    def label_probabilities(self) -> Mapping[str, float] | None:
        """Probability of every label of the expert's task; ``None`` where it does not answer with a label."""
        return None if self.answer is None else self.answer.label_probabilities

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, with what the kind of answer adds, such as the entities that tags mark."""
        values: dict[str, Any] = {
            "text": self.text,
            "pair": self.pair,
            "task": self.task,
            "expert": self.expert,
            "route": {name: round(value, 6) for name, value in self.route.items()},
            "confidence": _rounded(self.confidence),
            "answer": None if self.answer is None else self.answer.value,
            "answer_score": None,
        }
        if self.answer is not None:
            kind = kind_of_answer(self.answer.kind)
            values["answer_score"] = None if kind.is_generative else _rounded(self.answer.score)
            values |= kind.details(self.text, self.answer.value)
            if self.label_probabilities is not None:
                values["label_probabilities"] = {
                    name: _rounded(value) for name, value in self.label_probabilities.items()
                }
            if kind.is_generative:
                counts = ("finish_reason", "prompt_tokens", "completion_tokens")
                values |= {name: getattr(self.answer, name) for name in counts}
        return values


def _rounded(value: float | None) -> float | None:
    """Return a probability to six places; ``None`` for one that cannot be had, which JSON writes as null."""
    return None if value is None or not math.isfinite(value) else round(value, 6)


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
        expert = experts[expert_index] if expert_index >= 0 else None
        name = BARE_BASE if expert is None else expert.name
        route = {name: 1.0} if named else dict(zip(names, routed[position], strict=True))
        task_name = BARE_BASE if expert_index == BARE else None
        row_predictions.append(
            Prediction(
                text=row[0],
                pair=row[1],
                task=task_name if expert is None else expert.task.name,
                expert=None if expert is None else expert.name,
                route=route,
                confidence=max(route.values()) if named or expert is not None else None,
                answer=answer,
            )
        )
    return row_predictions
