"""From texts to windows of tokens, and from windows to padded batches.

A text longer than a window becomes several overlapping windows; the first of them is what a router reads.

Letters: B batch, S positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import RLock
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from dynamorouter.errors import ConfigError, DataError
from dynamorouter.model.text.special import SpecialTokens

TextPair = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive tokens of one row, special tokens included.

    Attributes:
        row: index of the row that it belongs to, in the list that was encoded.
        part: 0 for the first window of a row, 1 for the next, ...
        encoding: token ids, segment ids, character offsets and sequence ids, as the tokenizer gives them.
    """

    row: int
    part: int
    encoding: Encoding

    def __len__(self) -> int:
        return len(self.encoding)


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded windows.

    Attributes:
        ids: token ids ``(B, S)``.
        types: segment ids ``(B, S)``, or ``None`` where the base has none.
        mask: 1 where there is a token, ``(B, S)``.
        positions: of rows that each hold several examples, the position of every token in its own example, ``(B, S)``;
            no token then attends to another example. For decoders alone.
    """

    ids: Tensor
    types: Tensor | None
    mask: Tensor
    positions: Tensor | None = None


class TextEncoder:
    """Turns texts and pairs into windows with the base's own fast tokenizer.

    Args:
        tokenizer: a ``transformers`` tokenizer that is backed by ``tokenizers``.
        segments: whether the base takes segment ids.
        limit: the longest input that the base can read, in tokens.
        vocabulary: how many tokens the base has embeddings for.
        escape_special: whether the characters of special tokens are ordinary ones where a row's text holds them.

    Raises:
        ConfigError: the tokenizer has no fast backend, or begins or ends texts with a token that has no embedding.
    """

    def __init__(
        self, tokenizer: Any, *, segments: bool, limit: int, vocabulary: int, escape_special: bool = True
    ) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError(
                f"{type(tokenizer).__name__} has no fast backend, which is needed for character offsets; "
                "convert it with transformers' convert_slow_tokenizer and save it beside the model"
            )
        self.segments = segments
        self.limit = limit
        self.vocabulary = vocabulary
        candidates = (getattr(tokenizer, key, None) for key in ("pad_token_id", "eos_token_id"))
        usable = (token for token in candidates if token is not None and token < vocabulary)
        self.pad_id = int(next(usable, 0))  # masked, whatever it is
        self._special = SpecialTokens(tokenizer) if escape_special else None
        self._fast: Tokenizer = Tokenizer.from_str(backend.to_str())
        self._fast.no_padding()
        self._fast.no_truncation()
        self._lock = RLock()  # a text that is cut sets truncation for all who encode
        self._extra = (self._fast.num_special_tokens_to_add(False), self._fast.num_special_tokens_to_add(True))
        last = max([self._fast.get_vocab_size(False) - 1, *self._fast.get_added_tokens_decoder()])
        self._has_beyond = last >= vocabulary
        if self._has_beyond:
            self._check_frame()

    def windows(self, rows: Sequence[TextPair], *, max_tokens: int, stride: int) -> list[Window]:
        """Encode rows, cutting what is too long into windows of ``max_tokens`` that overlap by ``stride`` tokens.

        A pair's first text is kept whole in every window (up to half a window) and its second text is cut.
        """
        room = min(max_tokens, self.limit)
        windows: list[Window] = []
        for row, encoding in enumerate(self._encode_rows(rows)):
            if len(encoding) <= room:
                windows.append(Window(row, 0, encoding))
                continue
            with self._lock:
                cut = self._cut(rows[row], room, stride)
            windows.extend(Window(row, part, piece) for part, piece in enumerate(cut))
        return windows

    def encode(self, texts: Sequence[str], *, special: bool = True) -> list[Encoding]:
        """Encode texts whole, with the tokens that begin and end a text unless ``special`` is false.

        Raises:
            DataError: a text holds a token that the base has no embedding for.
        """
        return self._encode_batch(self._reader(texts), list(texts), special=special)

    def encode_written(self, rows: Sequence[TextPair], write: Callable[[str, str | None], str]) -> list[Encoding]:
        """Encode what a form makes of rows; special tokens are those that the form itself writes.

        Raises:
            DataError: a prompt holds a token that the base has no embedding for.
        """
        special = self._special
        if special is None or not special.held_by(text for row in rows for text in row):
            return self._encode_batch(self._fast, [write(text, pair) for text, pair in rows])
        prompts = [
            write(special.protected(text), None if pair is None else special.protected(pair)) for text, pair in rows
        ]
        return self._encode_batch(self._escaping, [special.written(prompt) for prompt in prompts])

    def lengths(self, rows: Sequence[TextPair]) -> list[int]:
        """Return the uncut length of each row in tokens, special tokens included."""
        return [len(encoding) for encoding in self._encode_rows(rows)]

    def collate(self, encodings: Iterable[Encoding], device: torch.device) -> Batch:
        """Pad encodings on the right to the longest of them."""
        ids, types = [], []
        for encoding in encodings:
            ids.append(encoding.ids)
            types.append(encoding.type_ids)
        return self.pad(ids, types, device)

    def pad(self, ids: Sequence[Any], types: Sequence[Any], device: torch.device) -> Batch:
        """Pad sequences of token and segment ids on the right to the longest of them."""
        longest = max(len(sequence) for sequence in ids)
        table = np.full((len(ids), longest), self.pad_id, dtype=np.int64)
        segments = np.zeros_like(table)
        mask = np.zeros_like(table)
        for row, (sequence, kinds) in enumerate(zip(ids, types, strict=True)):
            table[row, : len(sequence)] = sequence
            segments[row, : len(sequence)] = kinds
            mask[row, : len(sequence)] = 1
        return Batch(
            ids=torch.from_numpy(table).to(device),
            types=torch.from_numpy(segments).to(device) if self.segments else None,
            mask=torch.from_numpy(mask).to(device),
        )

    def _encode_rows(self, rows: Sequence[TextPair]) -> list[Encoding]:
        inputs: list[Any] = [text if pair is None else (text, pair) for text, pair in rows]
        return self._encode_batch(self._reader(text for row in rows for text in row), inputs)

    def _reader(self, texts: Iterable[str | None]) -> Tokenizer:
        """Return the tokenizer that reads texts of users: one that knows no special token where one is in them."""
        return self._escaping if self._special is not None and self._special.held_by(texts) else self._fast

    @cached_property
    def _escaping(self) -> Tokenizer:
        """The tokenizer whose special tokens no text can hold."""
        assert self._special is not None
        return self._special.renamed(self._fast)

    def _encode_batch(self, reader: Tokenizer, inputs: list[Any], *, special: bool = True) -> list[Encoding]:
        with self._lock:
            encodings = list(reader.encode_batch(inputs, add_special_tokens=special))
        if self._has_beyond:
            for encoding in encodings:
                beyond = self._beyond(encoding)
                if beyond:
                    raise DataError(
                        f"a text holds {beyond}, which its model has no embedding for (it has {self.vocabulary}); take "
                        "it out of the text, or resize the model (resize_token_embeddings) and train it"
                    )
        return encodings

    def _beyond(self, encoding: Encoding) -> str:
        """Name the first token that the base has no embedding for; empty where there is none."""
        ids = (token for token in encoding.ids if token >= self.vocabulary)
        token_id = next(ids, None)
        return "" if token_id is None else f"the token {self._fast.id_to_token(token_id)!r} (number {token_id})"

    def _check_frame(self) -> None:
        """See that the tokens that begin and end every text have embeddings."""
        for beyond in (self._beyond(self._fast.encode("")), self._beyond(self._fast.encode("", ""))):
            if beyond:
                raise ConfigError(
                    f"the tokenizer puts {beyond} around every text, but its model has {self.vocabulary} embeddings; "
                    "resize the model (resize_token_embeddings) and save it again, or use the tokenizer that it came "
                    "with"
                )

    def _cut(self, row: TextPair, room: int, stride: int) -> list[Encoding]:
        text, pair = row
        fast = self._reader(row)
        if pair is not None:
            first = fast.encode(text, add_special_tokens=False)
            half = (room - self._extra[1]) // 2
            if len(first) > half:
                text = text[: first.offsets[half - 1][1]]
                first = fast.encode(text, add_special_tokens=False)
            space = room - self._extra[1] - len(first)
        else:
            space = room - self._extra[0]
        strategy = "longest_first" if pair is None else "only_second"
        fast.enable_truncation(room, stride=max(0, min(stride, space // 2)), strategy=strategy)
        try:
            encoding = fast.encode(text, pair)
            return [encoding, *encoding.overflowing]
        finally:
            fast.no_truncation()
