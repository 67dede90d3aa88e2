"""Choosing the next token of each row: the likeliest, or drawn from what temperature, top-k and top-p leave.

A row draws from a generator of its own, which depends on its seed and its prompt alone. What is drawn for it therefore
does not depend on the rows beside it.

Letters: B batch, V vocabulary.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from dynamorouter.tasks.task import Generation

COLDEST = 1e-6
"""Temperatures below this draw as this one does, which is the likeliest token: nothing overflows."""


class Sampler:
    """Chooses tokens for the rows of a batch, each by its own options.

    Args:
        options: of each row.
        prompts: token ids of each row.
        ends: tokens that end a text.
    """

    def __init__(self, options: Sequence[Generation], prompts: Sequence[Sequence[int]], *, ends: Iterable[int]) -> None:
        self._options = list(options)
        self._ends = sorted(ends)
        self._draws = [
            _generator(chosen.seed, prompt) if chosen.temperature > 0 else None
            for chosen, prompt in zip(options, prompts, strict=True)
        ]

    def choose(self, logits: Tensor, rows: Sequence[int], *, written: Sequence[Sequence[int]]) -> Tensor:
        """Return the next token of each row, ``(B,)``.

        Args:
            logits: float32 ``(B, V)``.
            rows: whose logits they are.
            written: what each of them has written so far.
        """
        options = [self._options[row] for row in rows]
        if any(chosen.repetition_penalty != 1.0 for chosen in options):
            logits = _penalised(logits, options, written)
        banned = [
            [end for end in self._ends if end < logits.shape[1]] * (len(said) < chosen.min_new_tokens)
            + repeated(said, chosen.no_repeat_ngram)
            for chosen, said in zip(options, written, strict=True)
        ]
        if any(banned):
            pairs = [(place, token) for place, own in enumerate(banned) for token in own]
            row, column = torch.tensor(pairs, device=logits.device).unbind(1)
            logits = logits.index_put((row, column), logits.new_tensor(-torch.inf))
        tokens = logits.argmax(dim=-1)
        drawn = [place for place, row in enumerate(rows) if self._draws[row] is not None]
        for filtered in (False, True):
            some = [place for place in drawn if self._filters(rows[place]) == filtered]
            if some:
                at = torch.tensor(some, device=logits.device)
                tokens[at] = self._draw(logits[at], [rows[place] for place in some], filtered)
        return tokens

    def _filters(self, row: int) -> bool:
        return self._options[row].top_k > 0 or self._options[row].top_p < 1

    def _draw(self, logits: Tensor, rows: Sequence[int], filtered: bool) -> Tensor:
        """Draw from each row of ``(B, V)`` by one uniform number, through the inverse of the distribution."""
        options = [self._options[row] for row in rows]
        heat = logits.new_tensor([chosen.temperature for chosen in options], dtype=torch.float64)[:, None]
        falls = (logits - logits.amax(dim=-1, keepdim=True)).double()
        shares = (falls / heat.clamp_min(COLDEST)).softmax(dim=-1)  # (B, V)
        order: Tensor | None = None
        if filtered:
            shares, order = shares.sort(dim=-1, descending=True, stable=True)
            shares = _keep(shares, options)
        draws = (self._draws[row] for row in rows)
        uniform = shares.new_tensor([draw.random() for draw in draws if draw is not None])[:, None]
        reached = shares.cumsum(dim=-1)
        whole = reached[:, -1:]
        aim = torch.minimum(uniform * whole, torch.nextafter(whole, torch.zeros_like(whole)))
        place = torch.searchsorted(reached, aim, right=True)  # the first whose sum is beyond the aim
        return (place if order is None else order.gather(1, place))[:, 0]


def repeated(written: Sequence[int], size: int) -> list[int]:
    """Return the tokens that would complete a run of ``size`` tokens which was written before."""
    if not 0 < size <= len(written):
        return []
    last = tuple(written[len(written) - size + 1 :])
    runs = (tuple(written[i : i + size]) for i in range(len(written) - size + 1))
    return sorted({run[-1] for run in runs if run[:-1] == last})


def _penalised(logits: Tensor, options: Sequence[Generation], written: Sequence[Sequence[int]]) -> Tensor:
    """Make what is written already less likely, row by row of ``(B, V)``."""
    logits = logits.clone()
    for place, (chosen, said) in enumerate(zip(options, written, strict=True)):
        if chosen.repetition_penalty != 1.0 and said:
            at = torch.tensor(sorted(set(said)), device=logits.device)
            old = logits[place, at]
            logits[place, at] = torch.where(old < 0, old * chosen.repetition_penalty, old / chosen.repetition_penalty)
    return logits


def _keep(shares: Tensor, options: Sequence[Generation]) -> Tensor:
    """Zero what top-k and then top-p leave out of shares in falling order, ``(B, V)``."""
    places = torch.arange(shares.shape[1], device=shares.device)
    most = torch.tensor([chosen.top_k or shares.shape[1] for chosen in options], device=shares.device)[:, None]
    shares = shares * (places < most)
    shares = shares / shares.sum(dim=-1, keepdim=True)
    before = shares.cumsum(dim=-1) - shares  # of the likelier tokens
    return shares * (before < shares.new_tensor([chosen.top_p for chosen in options])[:, None])


def _generator(seed: int, prompt: Sequence[int]) -> np.random.Generator:
    """Return a generator that depends on the seed and the prompt alone."""
    return np.random.default_rng([seed % 2**64, zlib.crc32(np.asarray(prompt, dtype=np.int64).tobytes())])
