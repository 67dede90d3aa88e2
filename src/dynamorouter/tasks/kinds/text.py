"""A text that is written, by the language model of a decoder or of an encoder-decoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dynamorouter.tasks.chat import chat_of, exchange
from dynamorouter.tasks.kinds.base import AnswerValue, HeadKind, NativeRow, RowProblem, head_kinds
from dynamorouter.tasks.record import Record, Target
from dynamorouter.tasks.text import text_problem


@head_kinds.register("causal_lm")
@head_kinds.register("seq2seq")
class TextKind(HeadKind):
    """The target is texts that are equally right, ``{"texts": [...]}``, and beside them what only a metric reads.

    Noise is let alone: what is to be written may quote the text.
    """

    answer_kind = "text"
    is_generative = True
    pair = "input"

    def problems(
        self, head: str, labels: Sequence[str], *, pair: str | None = None, extra: Mapping[str, str] | None = None
    ) -> list[str]:
        """Return what keeps a task from having this head, a further column called ``texts`` among it."""
        mistakes = super().problems(head, labels, pair=pair, extra=extra)
        if "texts" in (extra or {}):
            mistakes.append("columns.extra names 'texts', which is what columns.target becomes; choose another name")
        return mistakes

    def text(self, value: Any) -> object:
        """Return the text; of a conversation all turns before the answer."""
        turns = chat_of(value)
        if turns is None:
            return value
        told = exchange(turns)
        return RowProblem("not_chat", told) if isinstance(told, str) else told.text

    def target(self, row: NativeRow) -> Target | RowProblem:
        """Return the text to be written, or several equally right ones, and beside them what only a metric reads."""
        target, turns = row.target, chat_of(row.target)
        if turns is not None:
            told = exchange(turns)
            if isinstance(told, str) or told.answer is None:
                return RowProblem("no_answer", f"{row.target_column} does not end with a turn of the assistant")
            target = told.answer
        texts = target if isinstance(target, list) else [target]
        if target is None or not texts:
            return RowProblem("no_answer", f"{row.target_column} is empty; give the text to be written")
        for text in texts:
            problem = text_problem(text, max_chars=row.max_chars)
            if problem is not None:
                code = "no_answer" if problem[0] == "empty" else problem[0]
                return RowProblem(code, f"{row.target_column} {problem[1]}")
        extra = {name: value if isinstance(value, list) else [value] for name, value in row.extra.items()}
        return {"texts": texts, **extra}

    def most_frequent(self, targets: Sequence[Target]) -> Callable[[Record], AnswerValue]:
        """Return the most frequent of the first texts for every row."""
        text = Counter(self.class_of(target) for target in targets).most_common(1)[0][0]
        return lambda record: text or ""

    def class_of(self, target: Target) -> str | None:
        """Return the first text: where there are few different ones, they are labels in words."""
        return str(target["texts"][0]) if isinstance(target, dict) else None
