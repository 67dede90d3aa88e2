"""One pass per token for a whole batch: prompts read once, keys and values kept, rows that are done left out.

Prompts are padded on the right, as everywhere. Once they are read, a decoder's keys and values are moved so that the
padding lies on the left: a row's tokens then follow one another without a gap, whatever the architecture makes of
distances, and new tokens of all rows go to the same position.

Letters: B batch, S positions of the prompts, L positions so far, D width, H heads, K width of a head.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from dynamorouter.errors import ConfigError, one_of
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.gate import Gate
from dynamorouter.model.text.tokenize import Batch


@dataclass(frozen=True, slots=True)
class Prefill:
    """Prompts that have been read up to some block, for a router to look at and for generation to go on from.

    Attributes:
        batch: the prompts, padded on the right.
        states: hidden states ``{layer: (B, S, D)}``, among them those of ``depth``.
        depth: blocks that have been run.
        cache: keys and values of these blocks; ``None`` for an encoder's. Generation completes it, so that a reading
            is used once.
    """

    batch: Batch
    states: dict[int, Tensor]
    depth: int
    cache: Any = None

    def at(self, depth: int) -> Prefill:
        """Return the reading as it was after fewer blocks, where experts begin; from 0 the prompts are read anew.

        Raises:
            ConfigError: the hidden states of that layer were not kept.
        """
        if depth == 0:
            return Prefill(self.batch, {}, 0, None if self.cache is None else DynamicCache())
        if depth not in self.states:
            raise ConfigError(
                f"the prompts were read up to block {self.depth}, and layers {one_of(map(str, self.states))} are kept; "
                f"to go on from block {depth}, read them with keep=[{depth}]"
            )
        return replace(self, depth=depth)

    def select(self, rows: Sequence[int]) -> Prefill:
        """Return the reading of some of the rows, without the padding that they do not need."""
        row_index = torch.tensor(list(rows), device=self.batch.ids.device)
        mask = self.batch.mask[row_index]
        longest = int(mask.sum(dim=1).max())
        cache = None if self.cache is None else DynamicCache()
        if cache is not None:
            for layer_index, layer in enumerate(self.cache.layers):
                cache.update(layer.keys[row_index, :, :longest], layer.values[row_index, :, :longest], layer_index)
        return Prefill(
            Batch(self.batch.ids[row_index, :longest], None, mask[:, :longest]),
            {layer: state[row_index, :longest] for layer, state in self.states.items()},
            self.depth,
            cache,
        )


@torch.inference_mode()
def read_prompts(base: Base, prompts: Sequence[Sequence[int]], depth: int, *, keep: Collection[int] = ()) -> Prefill:
    """Run prompts through the first ``depth`` blocks without experts.

    Args:
        base: a decoder, or an encoder-decoder, whose encoder is meant then.
        prompts: token ids of each row.
        depth: where the experts begin; from 0 there is nothing to run beforehand.
        keep: layers whose hidden states a router reads.
    """
    batch = pad_prompts(base, prompts)
    cache = DynamicCache() if base.kind == "decoder" else None
    states = base.forward_to(batch, depth, keep=keep, cache=cache) if depth or keep else {}
    return Prefill(batch, states, depth, cache)


def pad_prompts(base: Base, prompts: Sequence[Sequence[int]]) -> Batch:
    """Pad token ids on the right.

    Raises:
        ConfigError: a prompt is empty, or longer than the base can read.
    """
    for row, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= base.encoder.limit - (base.kind == "decoder"):
            raise ConfigError(
                f"prompt {row} has {len(prompt)} tokens, but base {base.spec.name!r} reads 1 to "
                f"{base.encoder.limit - (base.kind == 'decoder')}; give the row a text, or cut it (max_tokens)"
            )
    return base.encoder.pad(prompts, [[0] * len(prompt) for prompt in prompts], base.device)


@dataclass
class DecodeState:
    """A batch that is being generated.

    Attributes:
        base: a decoder or an encoder-decoder.
        gate: the experts of each row that is still in the batch.
        cache: keys and values of all that has been read and generated.
        mask: 1 where there is a token, ``(B, L)``; of an encoder-decoder, the encoder's mask ``(B, S)``.
        positions: of each row's next token, ``(B,)``.
        states: the encoder's hidden states ``(B, S, D)``, where there is an encoder.
    """

    base: Base
    gate: Gate | None
    cache: Any
    mask: Tensor
    positions: Tensor
    states: Tensor | None = None

    @staticmethod
    def begin(base: Base, reading: Prefill, gate: Gate | None) -> tuple[DecodeState, Tensor]:
        """Read the prompts to the end through the gated experts.

        Returns:
            The batch, and the hidden state ``(B, D)`` that each row's first token is chosen from.

        Raises:
            ConfigError: the base does not generate, or keeps a state that is no keys and values.
        """
        gate = None if gate is None else gate.cached()
        batch = reading.batch
        if base.kind == "seq2seq":
            states = _complete(base, reading, gate)
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
            state = DecodeState(base, gate, cache, batch.mask, batch.mask.new_zeros(len(batch.mask)), states)
            start = base.start_id if base.start_id is not None else base.encoder.pad_id
            return state, state.step(batch.ids.new_full((len(batch.ids),), start))
        if reading.cache is None or getattr(base.parts.language, "_is_stateful", False):
            raise ConfigError(
                f"base {base.spec.name!r} ({base.config.model_type}, kind {base.kind!r}) cannot generate text here; "
                "use a decoder with attention, or an encoder-decoder, whose checkpoint has a language-model head"
            )
        last = _complete(base, reading, gate)
        lengths = batch.mask.sum(dim=1)  # (B,)
        hidden = last[torch.arange(len(last), device=last.device), lengths - 1]
        size = batch.mask.shape[1]
        if int(lengths.min()) < size:
            _to_the_right(reading.cache, size - lengths)
        mask = torch.arange(size, device=last.device) >= (size - lengths)[:, None]
        return DecodeState(base, gate, reading.cache, mask.to(batch.mask.dtype), lengths), hidden

    def step(self, tokens: Tensor) -> Tensor:
        """Add a token to each row, ``(B,)``; return the hidden state ``(B, D)`` that the next one is chosen from."""
        base = self.base
        inputs: dict[str, Any] = {
            "input_ids": tokens[:, None],
            "past_key_values": self.cache,
            "use_cache": True,
        }
        if base.parts.decoder is not None:
            inputs |= {"encoder_hidden_states": self.states, "encoder_attention_mask": self.mask}
        else:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
            inputs["attention_mask"] = self.mask
            if base.takes_positions:
                inputs["position_ids"] = self.positions.clamp_max(base.positions - 1)[:, None]
        stack = base.parts.stack if base.parts.decoder is None else base.parts.decoder
        with base.context.hold(self.gate):
            output = stack(**inputs)
        self.positions = self.positions + 1
        return output.last_hidden_state[:, -1]  # type: ignore[no-any-return]

    def compact(self, rows: Tensor) -> None:
        """Go on with some of the rows, ``(N,)``, alone."""
        self.cache.batch_select_indices(rows)
        self.mask, self.positions = self.mask[rows], self.positions[rows]
        self.states = None if self.states is None else self.states[rows]
        if self.gate is not None:
            self.gate = self.gate.select(rows).cached()
        if self.base.parts.decoder is None:
            unused = int((self.mask.cumsum(dim=1) == 0).sum(dim=1).min())
            self.mask = self.mask[:, unused:]
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[:, :, unused:], layer.values[:, :, unused:]


def _complete(base: Base, reading: Prefill, gate: Gate | None) -> Tensor:
    """Run the blocks that the reading has left, through the gated experts: ``(B, S, D)``."""
    if reading.depth == 0:
        return base.forward(reading.batch, gate, cache=reading.cache)
    hidden = reading.states[reading.depth]
    return base.forward_from(hidden, reading.batch.mask, gate, depth=reading.depth, cache=reading.cache)


def _to_the_right(cache: Any, padding: Tensor) -> None:
    """Move each row's keys and values ``(B, H, S, K)`` right by as many positions as it has padding, ``(B,)``."""
    for layer in cache.layers:
        size = layer.keys.shape[2]
        source = (torch.arange(size, device=padding.device) - padding[:, None]) % size  # (B, S)
        for name in ("keys", "values"):
            states = getattr(layer, name)
            index = source[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
            setattr(layer, name, states.gather(2, index))
