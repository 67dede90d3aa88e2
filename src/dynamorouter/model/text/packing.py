"""How training examples lie in a batch: one in each row, or several short ones of one expert in a row.

Examples that share a row do not see each other: each counts its positions from zero, and attention stops at its
beginning (Krell et al., 2021). What a head reads is laid out one example a row again, so that it never notices.

Letters: B examples, L positions of an example, R rows, S positions of a row, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dynamorouter.model.base.base import Base
from dynamorouter.model.base.gate import Dropout, Gate
from dynamorouter.model.text.batching import token_batches
from dynamorouter.model.text.examples import TrainingExample, batch_of
from dynamorouter.model.text.tokenize import Batch

Rows = Sequence[Sequence[int]]
"""Positions of examples, by row."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Examples in rows.

    Attributes:
        examples: in the order of the rows.
        positions: of the same, in the list that they were taken from.
        rows: how many of them each row holds.
    """

    examples: list[TrainingExample]
    positions: list[int]
    rows: list[int]

    @staticmethod
    def of(examples: Sequence[TrainingExample], rows: Rows) -> Layout:
        """Lay out the examples at some positions."""
        flat = [i for row in rows for i in row]
        return Layout([examples[i] for i in flat], flat, [len(row) for row in rows])

    @property
    def packed(self) -> bool:
        """Whether any row holds several examples."""
        return len(self.rows) < len(self.examples)

    @property
    def longest(self) -> int:
        """Length L of the longest example."""
        return max(len(example) for example in self.examples)

    @property
    def experts(self) -> list[int]:
        """The expert of each row."""
        first = np.cumsum([0, *self.rows[:-1]])
        return [self.examples[i].expert for i in first]

    def batch(self, base: Base) -> Batch:
        """Return the rows as a padded batch ``(R, S)`` on the base's device."""
        if not self.packed:
            return batch_of(base, self.examples)
        ids, row_positions, start = [], [], 0
        for count in self.rows:
            row_examples = self.examples[start : start + count]
            ids.append(np.concatenate([example.ids for example in row_examples]))
            row_positions.append(np.concatenate([np.arange(len(example)) for example in row_examples]))
            start += count
        padded = base.encoder.pad(ids, [np.zeros_like(row) for row in ids], base.device)
        positions = np.zeros(tuple(padded.ids.shape), dtype=np.int64)  # padding: examples of one token
        for row, own_positions in enumerate(row_positions):
            positions[row, : len(own_positions)] = own_positions
        return Batch(padded.ids, padded.types, padded.mask, torch.from_numpy(positions).to(base.device))

    def apart(self, hidden: Tensor) -> Tensor:
        """Return states ``(R, S, D)`` one example a row, ``(B, L, D)``; beyond an example's end they mean nothing."""
        if not self.packed:
            return hidden
        return hidden.flatten(0, 1)[self._flat_positions(hidden.shape[1], hidden.device)]

    def together(self, states: Tensor, size: int) -> Tensor:
        """Return states of single examples ``(B, L, D)`` as rows of ``size`` positions, ``(R, S, D)``."""
        if not self.packed:
            return states
        rows = states.new_zeros(len(self.rows) * size, states.shape[-1])
        is_token = self.mask(states.device).bool()
        rows[self._flat_positions(size, states.device)[is_token]] = states[is_token]
        return rows.view(len(self.rows), size, -1)

    def mask(self, device: torch.device) -> Tensor:
        """Return 1 where an example has a token, ``(B, L)``."""
        lengths = torch.tensor([len(example) for example in self.examples], device=device)
        return (torch.arange(self.longest, device=device) < lengths[:, None]).long()

    def longest_read(self, base: Base, indices: Sequence[int]) -> int:
        """Return the most states that a head reads of one of some examples: those of its tokens, or of its target's."""
        examples = [self.examples[i] for i in indices]
        return max(len(example.target) if base.kind == "seq2seq" else len(example) for example in examples)

    def _flat_positions(self, size: int, device: torch.device) -> Tensor:
        """Return where each position of each example lies among ``R * size`` positions, ``(B, L)``."""
        begins, lengths, start = [], [len(example) for example in self.examples], 0
        for row, count in enumerate(self.rows):
            begins += [row * size + sum(lengths[start : start + i]) for i in range(count)]
            start += count
        first, last = torch.tensor(begins, device=device), torch.tensor(lengths, device=device) - 1
        steps = torch.arange(self.longest, device=device)
        return first[:, None] + torch.minimum(steps, last[:, None])


def plan_micro_batches(
    examples: Sequence[TrainingExample], pool: Sequence[int], *, budget: int, packing: bool
) -> list[Rows]:
    """Cut a pool of examples into micro-batches of rows under a token budget, padding included.

    With packing, the examples of each expert fill rows as long as the longest example of all, longest first, each in
    the first row that has room.
    """
    if not packing:
        groups = token_batches([len(examples[i]) for i in pool], budget=budget)
        return [[[pool[i]] for i in group] for group in groups]
    size = max(len(examples[i]) for i in pool)
    rows: list[list[int]] = []
    open_rows: dict[int, list[tuple[list[int], int]]] = {}
    for i in sorted(pool, key=lambda i: -len(examples[i])):
        example = examples[i]
        expert_rows = open_rows.setdefault(example.expert, [])
        for index, (row, free) in enumerate(expert_rows):
            if free >= len(example):
                row.append(i)
                expert_rows[index] = (row, free - len(example))
                break
        else:
            rows.append([i])
            expert_rows.append((rows[-1], size - len(example)))
    lengths = [sum(len(examples[i]) for i in row) for row in rows]
    return [[rows[i] for i in group] for group in token_batches(lengths, budget=budget)]


def last_states(
    base: Base,
    layout: Layout,
    batch: Batch,
    gate: Gate,
    *,
    states: Tensor | None = None,
    depth: int = 0,
    dropout: Dropout = 0.0,
) -> tuple[Tensor, Tensor]:
    """Run a batch through the gated experts, and return what the heads read.

    Args:
        base: with the banks installed.
        layout: of the batch.
        batch: what ``layout.batch`` made.
        gate: the experts of each row.
        states: of layer ``depth`` in the layout's rows, to go on from; ``None`` begins at the tokens.
        depth: where ``states`` are from.
        dropout: on the experts' input.

    Returns:
        Hidden states ``(B, L, D)`` and mask ``(B, L)``, one example a row. Of an encoder-decoder they are the
        decoder's, one for each token of an example's target.
    """
    if states is None:
        hidden = base.forward(batch, gate, dropout=dropout)
    else:
        hidden = base.forward_from(states, batch.mask, gate, depth=depth, dropout=dropout, positions=batch.positions)
    if base.kind != "seq2seq":
        return layout.apart(hidden), (layout.mask(hidden.device) if layout.packed else batch.mask)
    targets = [torch.as_tensor(example.target) for example in layout.examples]
    labels = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100).to(base.device)
    return base.decode_hidden(hidden, batch.mask, labels, gate, dropout=dropout), (labels >= 0).long()
