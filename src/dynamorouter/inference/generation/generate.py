"""Text for a batch whose rows use different experts, one pass per token for all of them.

The experts of a row are chosen once, before its first token, and stay. A row is written as it would be alone: what the
other rows are, which experts they use and how long they go on changes nothing in it.

Letters: B batch, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dynamorouter.errors import ConfigError
from dynamorouter.inference.generation.decoding import DecodeState, Prefill, read_prompts
from dynamorouter.inference.generation.sampling import Sampler
from dynamorouter.inference.generation.streaming import TextStream
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.gate import Gate
from dynamorouter.tasks.answer import FinishReason
from dynamorouter.tasks.task import Generation

FINISHED_SHARE = 0.25
"""Share of the rows in a batch that must be finished before the others go on without them: leaving costs a copy."""


@dataclass(frozen=True, slots=True)
class Generated:
    """What a row generated.

    Attributes:
        ids: its tokens, without the one that ends a text.
        text: its text, up to a stop text.
        finish_reason: ``stop`` if it ends by itself or by a stop text, ``length`` if it is as long as is allowed.
    """

    ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Some text of a row, as it is generated.

    Attributes:
        row: whose it is.
        text: the next piece of its text; may be empty in the last one.
        result: all of it, in the row's last piece.
    """

    row: int
    text: str
    result: Generated | None = None


@dataclass
class _Row:
    """A row that is being generated."""

    index: int
    options: Generation
    room: int
    stream: TextStream
    ids: list[int] = field(default_factory=list)
    pushed: int = 0
    finished: bool = False

    def push(self) -> str:
        """Turn the tokens that were not yet looked at into text."""
        new_ids, self.pushed = self.ids[self.pushed :], len(self.ids)
        return self.stream.push(new_ids) if new_ids else ""


def generate(
    base: Base,
    prompts: Sequence[Sequence[int]],
    gate: Gate | None,
    options: Generation | Sequence[Generation] | None = None,
    *,
    reading: Prefill | None = None,
    on_piece: Callable[[TextDelta], None] | None = None,
) -> list[Generated]:
    """Generate a text for each prompt.

    Args:
        base: a decoder or an encoder-decoder, with the experts in its banks.
        prompts: token ids of each row, of any lengths.
        gate: the experts of each row; ``None`` for the bare base.
        options: for all rows, or for each.
        reading: the prompts, if a router has read them already; it is used up.
        on_piece: is given the text of all rows piece by piece.

    Raises:
        ConfigError: a prompt is too long, or the base does not generate.
    """
    generated: dict[int, Generated] = {}
    for piece in stream(base, prompts, gate, options, reading=reading, each_token=on_piece is not None):
        if on_piece is not None:
            on_piece(piece)
        if piece.result is not None:
            generated[piece.row] = piece.result
    return [generated[row] for row in range(len(prompts))]


def stream(
    base: Base,
    prompts: Sequence[Sequence[int]],
    gate: Gate | None,
    options: Generation | Sequence[Generation] | None = None,
    *,
    reading: Prefill | None = None,
    each_token: bool = True,
) -> Iterator[TextDelta]:
    """Generate a text for each prompt and yield it in pieces; arguments are those of ``generate``.

    Args:
        base: see there.
        prompts: see there.
        gate: see there.
        options: see there.
        reading: see there.
        each_token: yield text as soon as it is settled; otherwise each row's once, when the row is done.
    """
    if not prompts:
        return
    row_options = [options or Generation()] * len(prompts) if not isinstance(options, Sequence) else list(options)
    if len(row_options) != len(prompts):
        raise ConfigError(
            f"there are {len(prompts)} prompts, but options for {len(row_options)}; give one for each, or one"
        )
    if reading is None:
        reading = read_prompts(base, prompts, 0)
    rows = [
        _open(base, row, prompt, option) for row, (prompt, option) in enumerate(zip(prompts, row_options, strict=True))
    ]
    sampler = Sampler(row_options, prompts, ends=base.eos_ids)
    with torch.inference_mode():
        batch, hidden = DecodeState.begin(base, reading, gate)
        tokens = _first(base, hidden, sampler, rows)
    live = rows
    while True:
        for row, token in zip(live, tokens.tolist(), strict=True):
            if not row.finished:
                yield from _take(base, row, token, each_token)
        unfinished = [position for position, row in enumerate(live) if not row.finished]
        if not unfinished:
            return
        with torch.inference_mode():
            if len(unfinished) <= (1 - FINISHED_SHARE) * len(live):
                index = torch.tensor(unfinished, device=tokens.device)
                batch.compact(index)
                tokens, live = tokens[index], [live[position] for position in unfinished]
            logits = base.logits(batch.step(tokens))
            tokens = sampler.choose(logits, [row.index for row in live], written=[row.ids for row in live])


def _open(base: Base, index: int, prompt: Sequence[int], options: Generation) -> _Row:
    """Begin a row; it may be as long as its options and the base's positions allow."""
    room = base.positions - (len(prompt) if base.kind == "decoder" else 1)
    backend = base.tokenizer.backend_tokenizer

    def decode(ids: Sequence[int]) -> str:
        return str(backend.decode(list(ids), skip_special_tokens=True))

    return _Row(index, options, min(options.max_new_tokens, room), TextStream(decode, options.stop))


def _first(base: Base, hidden: Tensor, sampler: Sampler, rows: Sequence[_Row]) -> Tensor:
    """Choose the first token of each row, where the base does not force one."""
    if base.kind == "seq2seq" and base.forced_id is not None:
        return torch.full((len(rows),), base.forced_id, device=hidden.device)
    return sampler.choose(base.logits(hidden), [row.index for row in rows], written=[row.ids for row in rows])


def _take(base: Base, row: _Row, token: int, each_token: bool) -> Iterator[TextDelta]:
    """Add a token to a row, see whether the row is done with it, and yield the text that is settled."""
    at_eos = token in base.eos_ids
    if not at_eos:
        row.ids.append(token)
    at_limit = len(row.ids) >= row.room
    text = row.push() if each_token or row.options.stop else ""
    if not (at_eos or at_limit or row.stream.stopped):
        if text and each_token:
            yield TextDelta(row.index, text)
        return
    row.finished = True
    text += row.push()
    text += row.stream.close()
    finish_reason: FinishReason = "stop" if at_eos or row.stream.stopped else "length"
    generated = Generated(tuple(row.ids), row.stream.text, finish_reason)
    yield TextDelta(row.index, text if each_token else row.stream.text, generated)
