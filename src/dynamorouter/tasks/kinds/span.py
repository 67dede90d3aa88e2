"""The span of a context that answers a question (Rajpurkar et al., 2016)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from dynamorouter.tasks.kinds.base import AnswerValue, HeadKind, NativeRow, Noise, RowProblem, head_kinds, parsed
from dynamorouter.tasks.labels import whole_number
from dynamorouter.tasks.record import Record, Target

NO_ANSWER = "no answer"
"""What a draw keeps the share of."""


@head_kinds.register("span")
class SpanKind(HeadKind):
    """The target is answers that stand in the context, ``{"texts": [...], "starts": [...]}``."""

    answer_kind = "span"
    pair = "context"
    noise: ClassVar[Mapping[str, Noise]] = {"text": "words"}
    target_name = "answer"

    def target(self, row: NativeRow) -> Target | RowProblem:
        """Return the gold answers that stand in the context.

        ``repairs`` counts those that were moved to the nearest occurrence (``answer_offset``), and those of several
        that do not occur and are left out (``answer_lost``).
        """
        texts_and_starts = _answers(parsed(row.target) if isinstance(row.target, str) else row.target)
        if texts_and_starts is None:
            return RowProblem(
                "not_answers",
                "answers must be {text: [..], answer_start: [..]}, both of the same length, or a list of {text, "
                "answer_start}",
            )
        texts, starts = texts_and_starts
        if not texts and row.may_lack_answer:
            return {"texts": [], "starts": []}
        if not texts:
            return RowProblem(
                "unanswerable", "there is no answer; set `null_threshold: 0` in a task that has such rows"
            )
        context = row.pair or ""
        gold: dict[str, list[Any]] = {"texts": [], "starts": []}
        repairs: Counter[str] = Counter()
        for text, start in zip(texts, starts, strict=True):
            if not isinstance(text, str) or start is None or not text.strip():
                return RowProblem("not_answers", f"answer {text!r} at {start!r}; give visible text and a whole number")
            occurs = start if start >= 0 and context.startswith(text, start) else _nearest(context, text, start)
            if occurs is None:
                repairs["answer_lost"] += 1
                continue
            if occurs != start:
                repairs["answer_offset"] += 1
            gold["texts"].append(text)
            gold["starts"].append(occurs)
        if not gold["texts"]:
            return RowProblem("answer_not_in_context", f"answer {texts[0]!r} does not occur in the context")
        row.repairs.update(repairs)
        return gold

    def stratum(self, target: Target) -> str:
        """Return whether there is an answer."""
        return "" if isinstance(target, dict) and target["texts"] else NO_ANSWER

    def most_frequent(self, targets: Sequence[Target]) -> Callable[[Record], AnswerValue]:
        """Return the first words of the context, as many as answers have in the median; none where most have none."""
        golds = [target["texts"] for target in targets if isinstance(target, dict)]
        lengths = sorted(len(str(texts[0]).split()) if texts else 0 for texts in golds)
        words = lengths[len(lengths) // 2]
        return lambda record: " ".join((record.pair or record.text).split()[:words])


def _answers(answers: Any) -> tuple[list[Any], list[int | None]] | None:
    """Return texts and starts, ``None`` for a start that is no whole number, from any form that data sets have."""
    if isinstance(answers, list) and all(isinstance(answer, Mapping) for answer in answers):
        answers = {key: [answer.get(key) for answer in answers] for key in ("text", "answer_start")}
    if not isinstance(answers, Mapping):
        return None
    texts, starts = answers.get("text"), answers.get("answer_start")
    if isinstance(texts, str):
        texts, starts = [texts], [starts]
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        return None
    return texts, [whole_number(start) for start in starts]


def _nearest(context: str, text: str, start: int) -> int | None:
    """Return where ``text`` occurs nearest to ``start``, the earlier of two equally near."""
    after = context.find(text, max(start, 0))
    before = context.rfind(text, 0, max(start, 0) + len(text))
    occurrences = [offset for offset in (before, after) if offset >= 0]
    return min(occurrences, key=lambda offset: abs(offset - start)) if occurrences else None
