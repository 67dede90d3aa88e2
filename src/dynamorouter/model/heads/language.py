"""Heads that generate: a prompt in, a text out, by the base's own language-model head.

They have no weights. The loss is the cross-entropy of the target text and of the token that ends it; the prompt gives
none. Logits are computed at predicted positions alone, some at a time where the vocabulary is large.

Letters: B examples, S positions, T tokens of the target text, N of all of a batch, D width, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dynamorouter.errors import ConfigError, DataError
from dynamorouter.model.heads.base import Head, WindowTarget, heads
from dynamorouter.model.text.examples import TrainingExample
from dynamorouter.model.text.prompts import encode_prompts, prompt_form
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task

if TYPE_CHECKING:
    from dynamorouter.model.base.base import Base

LOGITS = 1 << 26
"""Most logits that are kept for the way back; with more, parts of them are computed twice."""


class LanguageModelHead(Head):
    """Base of the heads that generate; a head borrows the vocabulary of the base that its examples were made for.

    Args:
        width: D.
        labels: none.
    """

    base_kind: ClassVar[str]
    is_generative = True

    def __init__(self, width: int, labels: Sequence[str] = ()) -> None:
        super().__init__(width, labels)
        self._base: Base | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the base out of copies."""
        return {**self.__dict__, "_base": None}

    def attach(self, base: Base) -> None:
        """Borrow a base's vocabulary.

        Raises:
            ConfigError: the base is of another kind, or has no token that ends a text.
        """
        if base.kind != self.base_kind:
            raise ConfigError(
                f"a {self.kind} head generates on a base of kind {self.base_kind!r}, but base {base.spec.name!r} is of "
                f"kind {base.kind!r}; name another base in the task, or take the head that goes with this one"
            )
        if not base.eos_ids:
            raise ConfigError(
                f"base {base.spec.name!r} names no token that ends a text, so that none could be learned; "
                "set eos_token_id in its config.json"
            )
        self._base = base

    @property
    def base(self) -> Base:
        """The base that it borrows from."""
        if self._base is None:
            raise ConfigError(f"a {self.kind} head has no base yet; make examples with it first (make_examples)")
        return self._base

    @property
    def _vocabulary(self) -> int:
        return int(self.base.config.vocab_size)

    def target(self, record: Record) -> str:
        """Return the first of a record's target texts.

        Raises:
            DataError: its target is no text.
        """
        texts = record.target.get("texts") if isinstance(record.target, dict) else None
        if not texts or not isinstance(texts[0], str):
            raise DataError(f"row {record.id!r}: the target of a {self.kind} task is texts, not {record.target!r}")
        return texts[0]

    def logits(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return those of the vocabulary, ``(B, S, V)``."""
        return self.base.logits(hidden)

    @abstractmethod
    def completions(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of target texts, with what ends them."""

    def _errors(self, hidden: Tensor, gold: Tensor) -> Tensor:
        """Return the cross-entropy of gold tokens ``(N,)`` at hidden states ``(N, D)``."""
        if hidden.shape[0] * self._vocabulary <= LOGITS:
            return self._cross_entropy(hidden, gold)
        size = max(1, LOGITS // self._vocabulary)
        parts = zip(torch.split(hidden, size), torch.split(gold, size), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([self._cross_entropy(h, g) for h, g in parts])
        return torch.cat([checkpoint(self._cross_entropy, h, g, use_reentrant=False) for h, g in parts])

    def _cross_entropy(self, hidden: Tensor, gold: Tensor) -> Tensor:
        return functional.cross_entropy(self.base.logits(hidden), gold, reduction="none")


@heads.register("causal_lm")
class CausalLMHead(LanguageModelHead):
    """Goes on from the prompt; an example is prompt and text in one, its target the prompt's length and the text."""

    kind = "causal_lm"
    appends_target = True
    base_kind = "decoder"

    def examples(
        self, base: Base, task: Task, records: Sequence[Record], *, max_tokens: int
    ) -> Iterator[TrainingExample]:
        """Yield prompt, text and end of each record.

        ``max_new_tokens`` are kept for the text, and more where the prompt leaves them free: the prompt is cut first.
        """
        self.attach(base)
        room = prompt_room(base, task, max_tokens)
        completions = self.completions([self.target(record) for record in records])
        rows = [(record.text, record.pair) for record in records]
        prompts = encode_prompts(base, rows, form=prompt_form(task, base.spec), room=room)
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            prompt_ids = prompt.ids
            text_ids = completion[: room + task.generation.max_new_tokens - len(prompt_ids)]
            target = np.array([len(prompt_ids), *text_ids])
            cut = (prompt.cut, len(completion) - len(text_ids))
            yield TrainingExample.of(row, [*prompt_ids, *text_ids], target, units=self.units(target), cut=cut)

    def completions(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of texts, and the token that ends them."""
        end = end_id(self.base)
        return [[*encoding.ids, end] for encoding in self.base.encoder.encode(texts, special=False)]

    def units(self, target: WindowTarget) -> int:
        """One per token of the text."""
        return len(target) - 1

    def loss(self, hidden: Tensor, mask: Tensor, targets: Sequence[WindowTarget]) -> Tensor:
        """Sum of the text's cross-entropies in each example; each token is predicted from the position before it."""
        lengths = torch.tensor([len(target) - 1 for target in targets], device=hidden.device)
        row = torch.arange(len(targets), device=hidden.device).repeat_interleave(lengths)
        positions = np.concatenate([np.arange(target[0] - 1, target[0] + len(target) - 2) for target in targets])
        gold = torch.as_tensor(np.concatenate([target[1:] for target in targets]), device=hidden.device)
        errors = self._errors(hidden[row, torch.as_tensor(positions, device=hidden.device)], gold)
        return torch.zeros(len(targets), device=hidden.device).index_add(0, row, errors)


@heads.register("seq2seq")
class Seq2SeqHead(LanguageModelHead):
    """Generates with the decoder of an encoder-decoder; an example is the prompt, its target the text.

    The hidden states that its loss reads are the decoder's, one for each token of the text.
    """

    kind = "seq2seq"
    base_kind = "seq2seq"

    def examples(
        self, base: Base, task: Task, records: Sequence[Record], *, max_tokens: int
    ) -> Iterator[TrainingExample]:
        """Yield each record's prompt with the text as target."""
        self.attach(base)
        max_new_tokens, room = task.generation.max_new_tokens, prompt_room(base, task, max_tokens)
        completions = self.completions([self.target(record) for record in records])
        rows = [(record.text, record.pair) for record in records]
        prompts = encode_prompts(base, rows, form=prompt_form(task, base.spec), room=room)
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            target = np.array(completion[:max_new_tokens])
            text_cut = max(0, len(completion) - max_new_tokens)
            yield TrainingExample.of(row, prompt.ids, target, units=self.units(target), cut=(prompt.cut, text_cut))

    def completions(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of texts as the base's tokenizer begins and ends them."""
        end, token_ids = end_id(self.base), [list(encoding.ids) for encoding in self.base.encoder.encode(texts)]
        return [ids if ids and ids[-1] in self.base.eos_ids else [*ids, end] for ids in token_ids]

    def units(self, target: WindowTarget) -> int:
        """One per token of the text."""
        return len(target)

    def loss(self, hidden: Tensor, mask: Tensor, targets: Sequence[WindowTarget]) -> Tensor:
        """Sum of the text's cross-entropies in each example, from the decoder's states ``(B, T, D)``."""
        lengths = torch.tensor([len(target) for target in targets], device=hidden.device)
        row = torch.arange(len(targets), device=hidden.device).repeat_interleave(lengths)
        positions = torch.cat([torch.arange(len(target), device=hidden.device) for target in targets])
        gold = torch.as_tensor(np.concatenate(list(targets)), device=hidden.device)
        errors = self._errors(hidden[row, positions], gold)
        return torch.zeros(len(targets), device=hidden.device).index_add(0, row, errors)


def prompt_room(base: Base, task: Task, max_tokens: int) -> int:
    """Return the longest prompt of a task in tokens; a decoder has to hold the text beside it.

    Raises:
        ConfigError: the text alone is too long for the base.
    """
    room = min(max_tokens, base.positions - (task.generation.max_new_tokens if base.kind == "decoder" else 0))
    if room < 1:
        raise ConfigError(
            f"task {task.name!r} may generate {task.generation.max_new_tokens} tokens, but base {base.spec.name!r} "
            f"holds {base.positions}, prompt included; lower task.{task.name}.generation.max_new_tokens"
        )
    return room


def end_id(base: Base) -> int:
    """Return the token that a text is taught to end with: the tokenizer's own, where it ends texts on this base."""
    eos_id = getattr(base.tokenizer, "eos_token_id", None)
    return int(eos_id) if eos_id in base.eos_ids else min(base.eos_ids)
