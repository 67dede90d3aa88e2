"""Heads: hidden states in, a loss or an answer out.

Heads that read a text answer from its hidden states: a row may be read in several windows; ``parts`` decodes each
window and ``merge`` makes one answer of a row's parts. Heads that write are in ``lm_heads``.

Letters: B windows, S positions, D width, C classes, T tags.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dynamorouter.data.records import Record
from dynamorouter.errors import ConfigError, DataError
from dynamorouter.model.encode import TextPair, Window
from dynamorouter.registry import Registry
from dynamorouter.tasks.task import Answer, HeadKind, Task

if TYPE_CHECKING:
    from dynamorouter.model.base import Base

WindowTarget = np.ndarray[Any, np.dtype[np.int64]]
"""What one window is trained on; its meaning is the head's own."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """Some tokens, and what a head learns from them.

    Attributes:
        row: index of the record that they come from.
        ids: token ids.
        types: segment ids, as many.
        target: in the head's own form.
        cut: tokens of the record that were left out: of what is read, and of what is to be written.
    """

    row: int
    ids: Sequence[int]
    types: Sequence[int]
    target: WindowTarget
    cut: tuple[int, int] = (0, 0)


class Head(nn.Module, ABC):
    """Base of all heads.

    Args:
        width: D.
        labels: names of the outputs, in order.
        options: settings that are stored with the head and given back to its constructor.
    """

    kind: HeadKind

    def __init__(self, width: int, labels: Sequence[str], **options: Any) -> None:
        super().__init__()
        self.width = width
        self.labels = tuple(labels)
        self.options = options

    def attach(self, base: Base) -> None:
        """Take note of the base that the head sits on.

        Raises:
            ConfigError: it does not go with this kind of head.
        """

    @abstractmethod
    def lessons(self, base: Base, task: Task, records: Sequence[Record], *, max_tokens: int) -> Iterator[Lesson]:
        """Yield what there is to learn from records, as the base's tokens.

        Args:
            base: that the head sits on.
            task: whose rows they are.
            records: the rows.
            max_tokens: longest window, or longest prompt.
        """

    @abstractmethod
    def units(self, target: WindowTarget) -> int:
        """Count the terms of the loss that a lesson contributes; a task's loss is the mean over them."""

    @abstractmethod
    def loss(self, hidden: Tensor, mask: Tensor, targets: Sequence[WindowTarget]) -> Tensor:
        """Return each lesson's summed loss ``(B,)`` from hidden states ``(B, S, D)`` and the mask ``(B, S)``."""

    def initialise(self, generator: torch.Generator) -> Head:
        """Draw linear layers as BERT does, N(0, 0.02), biases zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                with torch.no_grad():
                    module.weight.normal_(0.0, 0.02, generator=generator)
                    module.bias.zero_()
        return self


class ReadingHead(Head):
    """Base of the heads that answer from a text's own hidden states."""

    @abstractmethod
    def target(self, window: Window, record: Record) -> WindowTarget | None:
        """Return what this window is trained on, or ``None`` when it teaches nothing."""

    def lessons(self, base: Base, task: Task, records: Sequence[Record], *, max_tokens: int) -> Iterator[Lesson]:
        """Yield the windows that teach something.

        Raises:
            ConfigError: the base is an encoder-decoder.
        """
        if base.kind == "seq2seq":
            raise ConfigError(
                f"a {self.kind} head reads hidden states of an encoder or a decoder, but base {base.spec.name!r} is an "
                f"encoder-decoder; name another base for task {task.name!r}"
            )
        rows = [(record.text, record.pair) for record in records]
        for window in base.encoder.windows(rows, max_tokens=max_tokens, stride=task.stride):
            target = self.target(window, records[window.row])
            if target is not None:
                yield Lesson(window.row, window.encoding.ids, window.encoding.type_ids, target)

    @abstractmethod
    def parts(self, hidden: Tensor, mask: Tensor, windows: Sequence[Window], rows: Sequence[TextPair]) -> list[Any]:
        """Decode each window from ``(B, S, D)``; ``rows[i]`` is the text of ``windows[i]``."""

    @abstractmethod
    def merge(self, parts: Sequence[Any], row: TextPair) -> Answer:
        """Make one answer of the parts of a row, given in order."""


heads: Registry[type[Head]] = Registry("head", "dynamorouter.model")


@heads.register("classification")
class ClassificationHead(ReadingHead):
    """A label for a text or a pair, from the first window.

    Args:
        pooling: ``mean`` over the tokens, or ``cls`` for the first one.
        dense: a tanh layer before the output, as in BERT's and RoBERTa's own classifiers.
        dropout: before the output, in training.
    """

    kind: HeadKind = "classification"

    def __init__(
        self, width: int, labels: Sequence[str], *, pooling: str = "mean", dense: bool = False, dropout: float = 0.1
    ) -> None:
        super().__init__(width, labels, pooling=pooling, dense=dense, dropout=dropout)
        self.pooling = pooling
        self.dense = nn.Linear(width, width) if dense else None
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, len(self.labels))

    def logits(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return ``(B, C)`` in float32."""
        if self.pooling == "cls":
            pooled = hidden[:, 0].float()
        else:
            weights = mask.to(hidden.dtype)
            pooled = (torch.bmm(weights[:, None], hidden)[:, 0] / weights.sum(dim=1, keepdim=True)).float()
        if self.dense is not None:
            pooled = torch.tanh(self.dense(self.dropout(pooled) if self.pooling == "cls" else pooled))
        return self.out(self.dropout(pooled))  # type: ignore[no-any-return]

    def target(self, window: Window, record: Record) -> WindowTarget | None:
        """Return the label's index; only a text's first window is trained on."""
        if window.part:
            return None
        if record.target not in self.labels:
            raise DataError(f"row {record.id!r}: label {record.target!r} is not one of {', '.join(self.labels)}")
        return np.array([self.labels.index(str(record.target))])

    def units(self, target: WindowTarget) -> int:
        """One per text."""
        return 1

    def loss(self, hidden: Tensor, mask: Tensor, targets: Sequence[WindowTarget]) -> Tensor:
        """Cross-entropy of each text."""
        gold = torch.as_tensor(np.concatenate(list(targets)), device=hidden.device)
        return functional.cross_entropy(self.logits(hidden, mask), gold, reduction="none")

    def parts(self, hidden: Tensor, mask: Tensor, windows: Sequence[Window], rows: Sequence[TextPair]) -> list[Any]:
        """Return each window's most probable class and its probability."""
        score, best = self.logits(hidden, mask).softmax(dim=-1).max(dim=-1)
        return list(zip(best.tolist(), score.tolist(), strict=True))

    def merge(self, parts: Sequence[Any], row: TextPair) -> Answer:
        """Take the first window's label, as in training."""
        best, score = parts[0]
        return Answer("classification", self.labels[best], score)


@heads.register("tags")
class TagsHead(ReadingHead):
    """A tag for each whitespace-separated word, read off its first subword."""

    kind: HeadKind = "tags"

    def __init__(self, width: int, labels: Sequence[str], *, dropout: float = 0.1) -> None:
        super().__init__(width, labels, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, len(self.labels))

    def target(self, window: Window, record: Record) -> WindowTarget | None:
        """Return (position, tag) of each word that begins in this window, flattened."""
        if not isinstance(record.target, list):
            raise DataError(f"row {record.id!r}: the target of a tagging task is a list of tags, not {record.target!r}")
        found = first_subwords(window, record.text)
        pairs = [(position, self.labels.index(record.target[word])) for word, position in found.items()]
        return np.array(pairs).ravel() if pairs else None

    def units(self, target: WindowTarget) -> int:
        """One per word."""
        return len(target) // 2

    def loss(self, hidden: Tensor, mask: Tensor, targets: Sequence[WindowTarget]) -> Tensor:
        """Sum of the words' cross-entropies in each window."""
        table = np.concatenate([np.c_[np.full(len(t) // 2, row), t.reshape(-1, 2)] for row, t in enumerate(targets)])
        row, position, gold = torch.as_tensor(table, device=hidden.device).unbind(dim=1)
        logits = self.out(self.dropout(hidden[row, position].float()))
        losses = functional.cross_entropy(logits, gold, reduction="none")
        return torch.zeros(len(targets), device=hidden.device).index_add(0, row, losses)

    def parts(self, hidden: Tensor, mask: Tensor, windows: Sequence[Window], rows: Sequence[TextPair]) -> list[Any]:
        """Return ``{word: (tag, probability)}`` for each window."""
        score, best = self.out(hidden.float()).softmax(dim=-1).max(dim=-1)
        scores, tags = score.cpu().numpy(), best.cpu().numpy()
        return [
            {word: (int(tags[i, at]), float(scores[i, at])) for word, at in first_subwords(w, text).items()}
            for i, (w, (text, _)) in enumerate(zip(windows, rows, strict=True))
        ]

    def merge(self, parts: Sequence[Any], row: TextPair) -> Answer:
        """Tag every word by the first window that holds it; words that the tokenizer drops are outside."""
        outside = self.labels.index("O") if "O" in self.labels else 0
        found: dict[int, tuple[int, float]] = {}
        for part in parts:
            found = {**part, **found}
        words = len(word_spans(row[0]))
        tags = [self.labels[found[word][0] if word in found else outside] for word in range(words)]
        score = math.exp(sum(math.log(max(p, 1e-12)) for _, p in found.values()) / max(len(found), 1))
        return Answer("tags", tags, score)


@heads.register("span")
class SpanHead(ReadingHead):
    """The span of the context (or of the text, where there is none) that answers a question (SQuAD v1.1).

    Args:
        max_answer: longest answer, in tokens.
    """

    kind: HeadKind = "span"

    def __init__(self, width: int, labels: Sequence[str] = (), *, max_answer: int = 30, dropout: float = 0.0) -> None:
        super().__init__(width, labels, max_answer=max_answer, dropout=dropout)
        self.max_answer = max_answer
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, 2)

    def target(self, window: Window, record: Record) -> WindowTarget | None:
        """Return the first answer's first and last token, or the first token twice where the window lacks it."""
        if not isinstance(record.target, dict):
            raise DataError(f"row {record.id!r}: the target of a span task is texts and starts, not {record.target!r}")
        start = int(record.target["starts"][0])
        end = start + len(str(record.target["texts"][0]))
        inside = [
            at
            for at, (begin, stop) in enumerate(window.encoding.offsets)
            if window.encoding.sequence_ids[at] == 1 and begin < end and stop > start and stop > begin
        ]
        if not inside:
            return np.array([0, 0])
        begins, stops = window.encoding.offsets[inside[0]][0], window.encoding.offsets[inside[-1]][1]
        whole = begins <= start and stops >= end
        return np.array([inside[0], inside[-1]] if whole else [0, 0])

    def units(self, target: WindowTarget) -> int:
        """One per window."""
        return 1

    def _logits(self, hidden: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.out(self.dropout(hidden.float())).masked_fill(~allowed[..., None], -1e9)
        start, end = logits.unbind(dim=-1)
        return start, end

    def loss(self, hidden: Tensor, mask: Tensor, targets: Sequence[WindowTarget]) -> Tensor:
        """Mean of the cross-entropies of the first and the last token."""
        start, end = self._logits(hidden, mask.bool())
        gold = torch.as_tensor(np.stack(list(targets)), device=hidden.device)
        first = functional.cross_entropy(start, gold[:, 0], reduction="none")
        return (first + functional.cross_entropy(end, gold[:, 1], reduction="none")) / 2

    def parts(self, hidden: Tensor, mask: Tensor, windows: Sequence[Window], rows: Sequence[TextPair]) -> list[Any]:
        """Return (logit, probability, first character, last character) of each window's best span."""
        allowed = np.zeros(mask.shape, dtype=bool)
        for i, (window, (_, pair)) in enumerate(zip(windows, rows, strict=True)):
            wanted = 0 if pair is None else 1
            allowed[i, : len(window)] = [kind == wanted for kind in window.encoding.sequence_ids]
        start, end = self._logits(hidden, torch.as_tensor(allowed, device=hidden.device))
        size = hidden.shape[1]
        band = torch.ones(size, size, dtype=torch.bool, device=hidden.device).triu().tril(self.max_answer - 1)
        scores = (start[:, :, None] + end[:, None, :]).masked_fill(~band, -torch.inf).flatten(1)
        best = scores.argmax(dim=1)
        first, last = best // size, best % size
        row = torch.arange(len(windows), device=hidden.device)
        chance = start.softmax(dim=1)[row, first] * end.softmax(dim=1)[row, last]
        columns = (scores[row, best], chance, first, last)
        return [
            (logit, p, w.encoding.offsets[int(a)][0], w.encoding.offsets[int(b)][1])
            for w, logit, p, a, b in zip(windows, *(c.tolist() for c in columns), strict=True)
        ]

    def merge(self, parts: Sequence[Any], row: TextPair) -> Answer:
        """Take the span with the highest logits of all windows."""
        _, chance, begin, stop = max(parts)
        source = row[0] if row[1] is None else row[1]
        return Answer("span", source[begin:stop], chance)


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return the character span of each whitespace-separated word."""
    return [match.span() for match in re.finditer(r"\S+", text)]


def first_subwords(window: Window, text: str) -> dict[int, int]:
    """Map each word of ``text`` that begins in this window to the position of its first subword."""
    found: dict[int, int] = {}
    spans = word_spans(text)
    word = 0
    for at, ((begin, end), sequence) in enumerate(
        zip(window.encoding.offsets, window.encoding.sequence_ids, strict=True)
    ):
        if sequence != 0 or begin == end:
            continue
        while word < len(spans) and spans[word][1] <= begin:
            word += 1
        if word < len(spans) and begin <= spans[word][0] < end:
            found.setdefault(word, at)
    return found


def build_head(task: Task, width: int, options: Mapping[str, Any] | None = None) -> Head:
    """Build the head that a task names, with its labels and options."""
    return heads.get(task.head)(width, task.labels, **(options or {}))
