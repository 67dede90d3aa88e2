"""From texts to windows of tokens, and from windows to padded batches.

A text longer than a window becomes several overlapping windows; the first of them is what a router reads.

Letters: B batch, S positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from dynamorouter.errors import ConfigError

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

    Raises:
        ConfigError: the tokenizer has no fast backend.
    """

    def __init__(self, tokenizer: Any, *, segments: bool, limit: int) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError(
                f"{type(tokenizer).__name__} has no fast backend, which is needed for character offsets; "
                "convert it with transformers' convert_slow_tokenizer and save it beside the model"
            )
        self.segments = segments
        self.limit = limit
        candidates = (getattr(tokenizer, key, None) for key in ("pad_token_id", "eos_token_id"))
        self.pad_id = int(next((token for token in candidates if token is not None), 0))  # masked, whatever it is
        self._fast: Tokenizer = Tokenizer.from_str(backend.to_str())
        self._fast.no_padding()
        self._fast.no_truncation()
        self._lock = RLock()  # a text that is cut sets truncation for all who encode
        self._extra = (self._fast.num_special_tokens_to_add(False), self._fast.num_special_tokens_to_add(True))

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
        """Encode texts whole, with the tokens that begin and end a text unless ``special`` is false."""
        with self._lock:
            return list(self._fast.encode_batch(list(texts), add_special_tokens=special))

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
        with self._lock:
            return list(self._fast.encode_batch(inputs))

    def _cut(self, row: TextPair, room: int, stride: int) -> list[Encoding]:
        text, pair = row
        if pair is not None:
            first = self._fast.encode(text, add_special_tokens=False)
            half = (room - self._extra[1]) // 2
            if len(first) > half:
                text = text[: first.offsets[half - 1][1]]
                first = self._fast.encode(text, add_special_tokens=False)
            space = room - self._extra[1] - len(first)
        else:
            space = room - self._extra[0]
        strategy = "longest_first" if pair is None else "only_second"
        self._fast.enable_truncation(room, stride=max(0, min(stride, space // 2)), strategy=strategy)
        try:
            encoding = self._fast.encode(text, pair)
            return [encoding, *encoding.overflowing]
        finally:
            self._fast.no_truncation()
