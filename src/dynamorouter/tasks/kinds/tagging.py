"""One tag for each whitespace-separated word of a text, in the BIO scheme (Ramshaw and Marcus, 1995)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from dynamorouter.tasks.kinds.base import (
    AnswerValue,
    HeadKind,
    NativeRow,
    Noise,
    RowProblem,
    head_kinds,
    listed,
    unknown_labels,
)
from dynamorouter.tasks.labels import match_label
from dynamorouter.tasks.record import Record, Target
from dynamorouter.tasks.text import word_spans

OUTSIDE = "O"
EDGES = ".,;:!?\"'()[]{}"
"""Punctuation that does not belong to an entity at whose edge it stands."""


@head_kinds.register("tags")
class TaggingKind(HeadKind):
    """The target is a list of tags, one for each word; the native text is a list of tokens."""

    answer_kind = "tags"
    needs_labels = True
    classes = "word"
    pair = None
    noise: ClassVar[Mapping[str, Noise]] = {"text": "case"}

    def problems(
        self, head: str, labels: Sequence[str], *, pair: str | None = None, extra: Mapping[str, str] | None = None
    ) -> list[str]:
        """Return what keeps a task from having this head, tags outside the BIO scheme among it."""
        mistakes = super().problems(head, labels, pair=pair, extra=extra)
        if OUTSIDE not in labels:
            mistakes.append(f"labels lack {OUTSIDE!r}, the tag of words outside entities")
        odd = [label for label in labels if label != OUTSIDE and not re.fullmatch(r"[BI]-\S+", label)]
        if odd:
            mistakes.append(f"labels {', '.join(odd)} are not BIO tags; allowed: O, B-TYPE and I-TYPE")
        lost = [label for label in labels if label.startswith("I-") and f"B-{label[2:]}" not in labels]
        if lost:
            mistakes.append(f"labels {', '.join(lost)} have no B- tag of the same type")
        return mistakes

    def text(self, value: Any) -> object:
        """Join tokens by single spaces; they must fall apart into the same tokens again."""
        words = listed(value)
        if words is None or not all(isinstance(word, str) for word in words):
            return RowProblem("not_tokens", f"tokens is {str(value)[:40]!r}; give a list of strings")
        text = " ".join(words)
        if text.split() != words:
            odd = next(word for word in words if word.split() != [word])
            return RowProblem("token_whitespace", f"token {odd!r} is empty or holds whitespace; split or remove it")
        return text

    def target(self, row: NativeRow) -> Target | RowProblem:
        """Return the tags."""
        tags, words = listed(row.target), row.text.split()
        if tags is None or len(tags) != len(words):
            tag_note = type(row.target).__name__ if tags is None else f"{len(tags)} tags"
            return RowProblem("tag_count", f"{tag_note} for {len(words)} tokens; give one tag for each token")
        labels = [match_label(tag, row.labels) for tag in tags]
        unknown = [tag for tag, label in zip(tags, labels, strict=True) if label is None]
        return unknown_labels(unknown, row.labels) if unknown else [label for label in labels if label is not None]

    def most_frequent(self, targets: Sequence[Target]) -> Callable[[Record], AnswerValue]:
        """Return the most frequent tag for every word."""
        tag = Counter(str(tag) for target in targets for tag in target).most_common(1)[0][0]
        return lambda record: [tag] * len(record.text.split())

    def stratum(self, target: Target) -> str:
        """Return the types of the entities."""
        return ",".join(sorted({str(tag)[2:] for tag in target if tag != OUTSIDE}))

    def marked_types(self, target: Target) -> list[str] | None:
        """Return the type of each entity."""
        return [str(tag)[2:] for tag in target if str(tag).startswith("B-")]

    def details(self, text: str, value: AnswerValue) -> dict[str, Any]:
        """Return the entities that the tags mark."""
        return {"entities": entity_list(text, value)}


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return the entities of BIO tags as (type, first word, word after the last).

    As conlleval and seqeval do, an ``I-X`` that continues no entity of type X begins one.
    """
    spans: set[tuple[str, int, int]] = set()
    entity_type, start = "", 0
    for index, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, tag_type = tag.partition("-")
        if prefix == "I" and tag_type == entity_type:
            continue
        if entity_type:
            spans.add((entity_type, start, index))
        entity_type, start = ("", index) if tag == OUTSIDE else (tag_type, index)
    return spans


def entity_list(text: str, tags: Sequence[str]) -> list[dict[str, Any]]:
    """Return the entities that BIO tags mark, with characters from and to; punctuation at the edges is left out."""
    words = word_spans(text)
    marked = []
    for entity_type, first, last in sorted(entities(tags), key=lambda entity: entity[1]):
        start, end = words[first][0], words[last - 1][1]
        while end > start + 1 and text[end - 1] in EDGES:
            end -= 1
        while start < end - 1 and text[start] in EDGES:
            start += 1
        marked.append({"type": entity_type, "text": text[start:end], "start": start, "end": end})
    return marked
