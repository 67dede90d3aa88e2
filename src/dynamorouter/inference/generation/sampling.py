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
            _generator(option.seed, prompt) if option.temperature > 0 else None
            for option, prompt in zip(options, prompts, strict=True)
        ]

    def choose(self, logits: Tensor, rows: Sequence[int], *, written: Sequence[Sequence[int]]) -> Tensor:
        """Return the next token of each row, ``(B,)``.

        Args:
            logits: float32 ``(B, V)``.
            rows: whose logits they are.
            written: what each of them has written so far.
        """
        options = [self._options[row] for row in rows]
        if any(option.repetition_penalty != 1.0 for option in options):
            logits = _penalised(logits, options, written)
        banned = [
            [end for end in self._ends if end < logits.shape[1]] * (len(ids) < option.min_new_tokens)
            + repeated(ids, option.no_repeat_ngram)
            for option, ids in zip(options, written, strict=True)
        ]
        if any(banned):
            banned_at = [(position, token) for position, row_banned in enumerate(banned) for token in row_banned]
            row, column = torch.tensor(banned_at, device=logits.device).unbind(1)
            logits = logits.index_put((row, column), logits.new_tensor(-torch.inf))
        tokens = logits.argmax(dim=-1)
        drawn = [position for position, row in enumerate(rows) if self._draws[row] is not None]
        for filtered in (False, True):
            positions = [position for position in drawn if self._filters(rows[position]) == filtered]
            if positions:
                index = torch.tensor(positions, device=logits.device)
                tokens[index] = self._draw(logits[index], [rows[position] for position in positions], filtered)
        return tokens

    def _filters(self, row: int) -> bool:
        return self._options[row].top_k > 0 or self._options[row].top_p < 1

    def _draw(self, logits: Tensor, rows: Sequence[int], filtered: bool) -> Tensor:
        """Draw from each row of ``(B, V)`` by one uniform number, through the inverse of the distribution."""
        options = [self._options[row] for row in rows]
        temperature = logits.new_tensor([option.temperature for option in options], dtype=torch.float64)[:, None]
        below_best = (logits - logits.amax(dim=-1, keepdim=True)).double()
        shares = (below_best / temperature.clamp_min(COLDEST)).softmax(dim=-1)  # (B, V)
        order: Tensor | None = None
        if filtered:
            shares, order = shares.sort(dim=-1, descending=True, stable=True)
            shares = _top_k_top_p(shares, options)
        draws = (self._draws[row] for row in rows)
        uniform = shares.new_tensor([draw.random() for draw in draws if draw is not None])[:, None]
        cumulative = shares.cumsum(dim=-1)
        total = cumulative[:, -1:]
        target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
        column = torch.searchsorted(cumulative, target, right=True)  # the first whose sum is beyond the target
        return (column if order is None else order.gather(1, column))[:, 0]


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
    for position, (option, ids) in enumerate(zip(options, written, strict=True)):
        if option.repetition_penalty != 1.0 and ids:
            index = torch.tensor(sorted(set(ids)), device=logits.device)
            old = logits[position, index]
            logits[position, index] = torch.where(
                old < 0, old * option.repetition_penalty, old / option.repetition_penalty
            )
    return logits


def _top_k_top_p(shares: Tensor, options: Sequence[Generation]) -> Tensor:
    """Zero what top-k and then top-p leave out of shares in falling order, ``(B, V)``."""
    ranks = torch.arange(shares.shape[1], device=shares.device)
    most = torch.tensor([option.top_k or shares.shape[1] for option in options], device=shares.device)[:, None]
    shares = shares * (ranks < most)
    shares = shares / shares.sum(dim=-1, keepdim=True)
    before = shares.cumsum(dim=-1) - shares  # of the likelier tokens
    return shares * (before < shares.new_tensor([option.top_p for option in options])[:, None])


def _generator(seed: int, prompt: Sequence[int]) -> np.random.Generator:
    """Return a generator that depends on the seed and the prompt alone."""
    return np.random.default_rng([seed % 2**64, zlib.crc32(np.asarray(prompt, dtype=np.int64).tobytes())])
