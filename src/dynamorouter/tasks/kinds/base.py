"""What is special of the tasks that one kind of head answers, as far as it needs no tensors.

A head has two halves, registered under one name: the class here says what its rows, labels and answers are, and is all
that preparation, metrics and exploration know of it; the module in ``dynamorouter.model.heads`` has the weights.
"""

from __future__ import annotations

import ast
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

from dynamorouter.errors import one_of
from dynamorouter.registry import Registry
from dynamorouter.tasks.labels import nearest_label
from dynamorouter.tasks.record import Record, Target

AnswerValue = str | list[str]
Noise = Literal["words", "case"]
"""What augmentation may do to a text: drop and swap words and change their case, or their case alone."""


@dataclass(frozen=True, slots=True)
class RowProblem:
    """Why a native row is no record.

    Attributes:
        code: a short name to count under, such as ``unknown_label``.
        message: what was found, what is allowed, and the remedy.
        unknown: the labels that are none of the task's, where these are the problem.
    """

    code: str
    message: str
    unknown: tuple[str, ...] = ()


def unknown_labels(values: Sequence[Any], labels: Sequence[str]) -> RowProblem:
    """Return the problem of a row with labels that are none of the task's."""
    near = nearest_label(values[0], labels)
    hint = f" (did you mean {near!r}?)" if near else ""
    named = ", ".join(dict.fromkeys(map(repr, values)))
    message = f"label {named} is not in the list{hint}; allowed: {one_of(labels)}"
    return RowProblem("unknown_label", message, tuple(dict.fromkeys(map(str, values))))


@dataclass(frozen=True, slots=True)
class NativeRow:
    """A native row whose text and pair have been read; what a kind makes its target of.

    Attributes:
        text: what ``HeadKind.text`` made of the text's column.
        pair: the second text, if the row has one.
        target: the target's column as it is.
        target_column: its name, for messages.
        extra: what only metrics read, by the name that they know it by.
        labels: those of the task.
        max_chars: longest allowed text in characters.
        repairs: counts what was put right on the way, by a short name.
        may_lack_answer: whether a question of the task may be left open.
    """

    text: str
    pair: str | None
    target: Any
    target_column: str
    extra: Mapping[str, Any]
    labels: Sequence[str]
    max_chars: int
    repairs: Counter[str]
    may_lack_answer: bool = False


class HeadKind(ABC):
    """What the tasks of one kind of head have in common.

    Attributes:
        answer_kind: what its heads answer, the same as that of the metrics that judge them.
        is_generative: whether its heads write a text of their own.
        needs_labels: whether answers are made of the task's labels; a task has none where they are not.
        classes: what has one class of few: a row, a word of a row, or nothing.
        pair: what a second text is: ``None`` for kinds that read single texts, the ``second`` text of a pair where the
            task has one, a ``context`` that every row needs, or an ``input`` that a row may leave blank.
        noise: what augmentation may do to ``text`` and to ``pair``; what is not named stays as it is.
        target_name: what messages call the target; ``None`` for the name of its column.
    """

    answer_kind: ClassVar[str]
    is_generative: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    classes: ClassVar[Literal["row", "word"] | None] = None
    pair: ClassVar[Literal["second", "context", "input"] | None] = "second"
    noise: ClassVar[Mapping[str, Noise]] = {}
    target_name: ClassVar[str | None] = None

    def problems(
        self, head: str, labels: Sequence[str], *, pair: str | None = None, extra: Mapping[str, str] | None = None
    ) -> list[str]:
        """Return a sentence for each thing that keeps a task from having this head.

        Args:
            head: the head's name, for messages.
            labels: those of the task.
            pair: the task's ``columns.pair``.
            extra: the task's ``columns.extra``.
        """
        mistakes = []
        if self.needs_labels and len(set(labels)) < 2:
            mistakes.append(f"labels has {len(set(labels))}; a {head} head needs at least two different labels")
        if labels and not self.needs_labels:
            mistakes.append(f"labels is {list(labels)!r}; a {head} head has none, leave it out")
        if self.pair == "context" and not pair:
            mistakes.append(f"columns.pair is missing; a {head} head needs the column of the context")
        if self.pair is None and pair:
            mistakes.append(f"columns.pair is {pair!r}; a {head} head reads single texts, leave it out")
        if extra and not self.is_generative:
            mistakes.append(f"columns.extra is {dict(extra)!r}; only generative heads carry it, leave it out")
        return mistakes

    def text(self, value: Any) -> object:
        """Return the text that a native column holds, not yet checked, or a ``RowProblem`` where there is none."""
        return value

    @abstractmethod
    def target(self, row: NativeRow) -> Target | RowProblem:
        """Return a row's target in the form that the head learns from, or why it has none."""

    @abstractmethod
    def most_frequent(self, targets: Sequence[Target]) -> Callable[[Record], AnswerValue]:
        """Return what answers any row with what is most frequent among targets: the floor of every comparison."""

    def stratum(self, target: Target) -> str:
        """Return what a draw keeps the shares of."""
        return ""

    def class_of(self, target: Target) -> str | None:
        """Return the class of a row; ``None`` where rows have none."""
        return None

    def marked_types(self, target: Target) -> list[str] | None:
        """Return the type of each thing that a row marks; ``None`` where rows mark nothing."""
        return None

    def details(self, text: str, value: AnswerValue) -> dict[str, Any]:
        """Return what stands beside an answer in its JSON form, such as the entities that tags mark in a text."""
        return {}


head_kinds: Registry[type[HeadKind]] = Registry(
    "head",
    "dynamorouter.tasks.kinds",
    group="kinds",
    contract="dynamorouter.tasks.kinds.base:HeadKind",
    decorator="head_kinds.register",
)


def head_kind(head: str) -> HeadKind:
    """Return what is known of a kind of head without its tensors.

    Raises:
        ConfigError: there is no head of that name.
    """
    return head_kinds.get(head)()


@cache  # asked for with every prediction that is written as JSON
def kind_of_answer(answer_kind: str) -> HeadKind:
    """Return a kind whose heads answer so; those that share a kind of answer share its JSON form."""
    return next(kind() for _, kind in head_kinds.items() if kind.answer_kind == answer_kind)


def listed(value: Any) -> list[Any] | None:
    """Return a list as it is, and the text of one in a table (JSON, Python's, or parted by blanks) as a list."""
    if isinstance(value, list):
        return value
    if not isinstance(value, str):
        return None
    inside = parsed(value) if value.startswith("[") else None
    return inside if isinstance(inside, list) else value.split()


def parsed(value: str) -> Any:
    """Return what a text says as JSON or as a Python literal, as tables write lists; ``None`` where it is neither."""
    for parse in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return parse(value)
    return None
