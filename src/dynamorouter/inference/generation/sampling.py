"""Choosing the next token of each row: the likeliest, or drawn from what temperature, top-k and top-p leave.

A row draws from a generator of its own, which depends on its seed and its prompt alone. What is drawn for it therefore
does not depend on the rows beside it.

Letters: B batch, V vocabulary.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dynamorouter.errors import ConfigError

COLDEST = 1e-6
"""Temperatures below this draw as this one does, which is the likeliest token: nothing overflows."""


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How a row is written.

    Attributes:
        max_new_tokens: longest text, in tokens.
        min_new_tokens: tokens before which the text may not end by itself.
        temperature: 0 for the likeliest token each time; above that tokens are drawn, the more freely the higher.
        top_k: draw among so many of the likeliest tokens; 0 for all.
        top_p: draw among the likeliest tokens that make up this share of the probability (Holtzman et al., 2020).
        no_repeat_ngram: no run of so many tokens is written twice (Paulus et al., 2018); 0 allows all. The prompt does
            not count, so that names can be copied from it.
        repetition_penalty: above 1 what is written already becomes less likely (Keskar et al., 2019); its logits are
            divided by it, negative ones multiplied. The prompt does not count here either.
        stop: texts that end the writing; they are left out of it.
        seed: what is drawn depends on it and on the prompt.

    Raises:
        ConfigError: a value is out of range.
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    no_repeat_ngram: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = {
            f"max_new_tokens={self.max_new_tokens} (1 or more)": self.max_new_tokens < 1,
            f"min_new_tokens={self.min_new_tokens} (0 to max_new_tokens)": not (
                0 <= self.min_new_tokens <= self.max_new_tokens
            ),
            f"temperature={self.temperature} (0 or more)": not 0 <= self.temperature < float("inf"),
            f"top_k={self.top_k} (0 or more)": self.top_k < 0,
            f"top_p={self.top_p} (above 0, at most 1)": not 0 < self.top_p <= 1,
            f"no_repeat_ngram={self.no_repeat_ngram} (0 or more)": self.no_repeat_ngram < 0,
            f"repetition_penalty={self.repetition_penalty} (above 0)": not 0 < self.repetition_penalty < float("inf"),
            f"stop={self.stop!r} (texts that are not empty)": isinstance(self.stop, str) or not all(self.stop),
        }
        named = [what for what, holds in wrong.items() if holds]
        if named:
            raise ConfigError(f"generation options are out of range: {'; '.join(named)}")


class Sampler:
    """Chooses tokens for the rows of a batch, each by its own options.

    Args:
        options: of each row.
        prompts: token ids of each row.
        ends: tokens that end a text.
    """

    def __init__(
        self, options: Sequence[GenerationOptions], prompts: Sequence[Sequence[int]], *, ends: Iterable[int]
    ) -> None:
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


def _penalised(logits: Tensor, options: Sequence[GenerationOptions], written: Sequence[Sequence[int]]) -> Tensor:
    """Make what is written already less likely, row by row of ``(B, V)``."""
    logits = logits.clone()
    for place, (chosen, said) in enumerate(zip(options, written, strict=True)):
        if chosen.repetition_penalty != 1.0 and said:
            at = torch.tensor(sorted(set(said)), device=logits.device)
            old = logits[place, at]
            logits[place, at] = torch.where(old < 0, old * chosen.repetition_penalty, old / chosen.repetition_penalty)
    return logits


def _keep(shares: Tensor, options: Sequence[GenerationOptions]) -> Tensor:
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
