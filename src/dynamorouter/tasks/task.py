"""A task: where its data is, which columns are input and target, which head answers it, which metrics judge it.

What is declared here is declared once: the keys of a task's YAML file, their checks, the options of the command line
that come of them, and what the rooms above read.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Self, TypeVar

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from dynamorouter.errors import one_of, suggest
from dynamorouter.tasks.kinds import head_kind, head_kinds
from dynamorouter.utils.options import Alias, Count, Later, Name, Number, Options, Size, Weight, Whole

T = TypeVar("T")
TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""A task's name is a folder's name too, so it can hold neither dots nor slashes."""


class Columns(Options):
    """Names of a task's native columns."""

    text: Name
    """The single text, the first of a pair, the question, or the list of tokens."""
    target: Name
    """Label, list of tags, answers with ``text[]`` and ``answer_start[]``, or the text to be written, or several."""
    pair: Annotated[str | None, Alias("text_pair")] = None
    """The second text, or the context of a question."""
    id: str | None = None
    """Unique identifier, if the data has one."""
    extra: dict[str, str] = Field(default_factory=dict)
    """Further columns that only a metric reads, by the name it knows them by: ``tests: test_list``."""

    def needed(self) -> tuple[str, ...]:
        """Return the columns that every row must have."""
        columns = (self.text, self.pair, self.target, *self.extra.values())
        return tuple(column for column in columns if column is not None)


class Generation(Options):
    """How a text is written."""

    max_new_tokens: Count = 64
    """Longest text, in tokens; its prompt has ``max_tokens`` beside it."""
    min_new_tokens: Annotated[Size, Later()] = 0
    """Tokens before which a text may not end by itself."""
    temperature: Weight = 0.0
    """0 for the likeliest token each time; above that tokens are drawn, the more freely the higher."""
    top_k: Size = 0
    """Draw among so many of the likeliest tokens; 0 for all."""
    top_p: Annotated[Number, Field(gt=0.0, le=1.0)] = 1.0
    """Draw among the likeliest tokens that make up this share of the probability (Holtzman et al., 2020)."""
    no_repeat_ngram: Annotated[Size, Alias("no_repeat_ngram_size")] = 0
    """Write no run of so many tokens twice (Paulus et al., 2018); 0 allows all. The prompt does not count."""
    repetition_penalty: Annotated[Number, Field(gt=0.0)] = 1.0
    """Above 1 what is written already becomes less likely (Keskar et al., 2019); the prompt does not count."""
    stop: Annotated[tuple[Name, ...], Alias("stop_strings")] = ()
    """Texts that end the writing; they are left out of the answer."""
    seed: Annotated[Whole, Later()] = 0
    """What is drawn depends on it and on the prompt."""

    @field_validator("min_new_tokens")
    @classmethod
    def _check_lengths(cls, least: int, info: ValidationInfo) -> int:
        longest = info.data.get("max_new_tokens")
        wrong = longest is not None and least > longest
        return _or_raise(least, [f"min_new_tokens {least} must not be above max_new_tokens {longest}"] if wrong else [])


def _without_null(changes: Any) -> Any:
    return {key: value for key, value in changes.items() if value is not None} if isinstance(changes, dict) else changes


class Task(Options):
    """One task of a system: what its YAML file holds."""

    name: str
    """Its name, also that of its folder of local data and of its expert; that of the file when absent there."""
    head: str
    """The kind of head that answers it."""
    columns: Columns
    """The native columns."""
    labels: tuple[str, ...] = ()
    """Allowed labels or tags in the order of the head's outputs; empty for spans and for texts."""
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("accuracy",)
    """Names of metrics; the first is the primary one."""
    sources: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Options by data source: ``hub``, ``local``, ``builtin``."""
    version: Count = 1
    """Raised whenever the meaning of the task changes."""
    max_tokens: Annotated[Size, Field(ge=8)] = 128
    """Longest window in tokens."""
    stride: Annotated[Size, Field(validate_default=True)] = 32
    """Overlap in tokens between the windows of a long text."""
    hyper: Annotated[dict[str, Any], BeforeValidator(_without_null), Alias("overrides")] = Field(default_factory=dict)
    """Changes of the expert phase for this task alone, such as ``{rank: 4}``; ``null`` or absent keeps its value."""
    base: str | None = None
    """Name of its expert's base, from ``base`` or ``bases``; ``null`` for the system's own."""
    positive: Annotated[str | None, Alias("pos_label")] = None
    """The label whose F1 the metric ``f1`` is; ``null`` for the mean over all labels."""
    null_threshold: Annotated[Number | None, Later()] = None
    """For questions that may be left open (SQuAD 2.0): no answer is given where it beats the best span by more than so
    many logits; ``null`` where every question has an answer."""
    prompt: str | None = None
    """Form in which an expert that writes reads a row; ``null`` for that of its base."""
    default_prompt: Annotated[str | None, Later()] = None
    """Form that goes with the data, where neither ``prompt`` nor a base with a form of its own says another."""
    generation: Generation = Generation()
    """How an expert that writes does so."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not TASK_NAME.fullmatch(name):
            raise ValueError(f"got {name!r}; it is also a folder's name: letters, digits, - and _, such as 'sst2'")
        return name

    @field_validator("head")
    @classmethod
    def _check_head(cls, head: str) -> str:
        if head not in head_kinds:
            reason = f"there is no such head{suggest(head, head_kinds)}; allowed: {one_of(head_kinds)}"
            raise ValueError(f"got {head!r}; {reason}")
        return head

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        repeated = sorted({label for label in labels if labels.count(label) > 1})
        return _or_raise(labels, [f"{', '.join(repeated)} is listed twice"] if repeated else [])

    @field_validator("stride")
    @classmethod
    def _check_stride(cls, stride: int, info: ValidationInfo) -> int:
        longest = info.data.get("max_tokens")
        wrong = longest is not None and stride >= longest
        return _or_raise(stride, [f"stride {stride} must be below max_tokens {longest}"] if wrong else [])

    @field_validator("positive")
    @classmethod
    def _check_positive(cls, positive: str | None, info: ValidationInfo) -> str | None:
        labels = info.data.get("labels")
        if positive is not None and labels is not None and positive not in labels:
            raise ValueError(f"got {positive!r}{suggest(positive, labels)}; allowed: {one_of(labels)}")
        return positive

    @model_validator(mode="after")
    def _check_head_fits(self) -> Self:
        kind = head_kind(self.head)
        problems = kind.problems(self.head, self.labels, pair=self.columns.pair, extra=self.columns.extra)
        if self.null_threshold is not None and kind.answer_kind != "span":
            problems.append(f"null_threshold is {self.null_threshold}; a {self.head} head has none, leave it out")
        return _or_raise(self, problems)


def _or_raise(value: T, problems: list[str]) -> T:
    """Return a checked value, or raise with all that is wrong with it."""
    if problems:
        raise ValueError("; ".join(problems))
    return value
