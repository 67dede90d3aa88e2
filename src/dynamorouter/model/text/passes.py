"""Examples in batches, and the passes that take them through the gated experts to what a head reads.

Letters: B examples of a batch, S positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynamorouter.model.base.base import Base
from dynamorouter.model.base.gate import Gate
from dynamorouter.model.heads.base import Head, WindowTarget
from dynamorouter.model.text.batching import token_batches
from dynamorouter.model.text.examples import TrainingExample
from dynamorouter.model.text.packing import Layout, last_states
from dynamorouter.model.text.tokenize import Batch
from dynamorouter.model.text.trunk_cache import TrunkCache

Gates = Callable[[Sequence[int]], Gate]
"""Makes the gate of a batch from the positions of its rows in the list that they were taken from."""


@dataclass(frozen=True, slots=True)
class ExampleBatch:
    """Examples that go through the base together, one in each row.

    Attributes:
        positions: of the examples in the list that they were taken from.
        layout: of the examples.
        batch: their tokens, padded.
    """

    positions: list[int]
    layout: Layout
    batch: Batch

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def targets(self) -> list[WindowTarget]:
        """What the head learns, or is judged by, from each example."""
        return [example.target for example in self.layout.examples]


class ExamplePasses:
    """A fixed list of examples in batches, which may be passed through experts any number of times.

    Args:
        base: with the experts in its banks.
        examples: to be batched.
        budget: most tokens in a pass, padding included; ``None`` takes the examples in their order.
        rows: so many at a time, where there is no budget.
        trunk: the trunk's outputs for these examples, from which passes go on; ``None`` begins at the tokens.
    """

    def __init__(
        self,
        base: Base,
        examples: Sequence[TrainingExample],
        *,
        budget: int | None,
        rows: int = 1,
        trunk: TrunkCache | None = None,
    ) -> None:
        self.base, self.examples, self.trunk = base, examples, trunk
        if budget is None:
            order = range(len(examples))
            groups = [list(order[first : first + rows]) for first in order[::rows]]
        else:
            groups = token_batches([len(example) for example in examples], budget=budget)
        layouts = [Layout.of(examples, [[i] for i in group]) for group in groups]
        self.batches = [
            ExampleBatch(group, layout, layout.batch(base)) for group, layout in zip(groups, layouts, strict=True)
        ]

    def states(self, batch: ExampleBatch) -> Tensor | None:
        """Return the trunk's outputs of a batch ``(B, S, D)``, if there is a trunk."""
        if self.trunk is None or not self.trunk.depth:
            return None
        return self.trunk.fetch(batch.positions, batch.batch.mask.shape[1])

    def forward(
        self, batch: ExampleBatch, gate: Gate, *, states: Tensor | None = None, depth: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Pass one batch through the gated experts.

        Args:
            batch: one of ``batches``.
            gate: the experts of each row.
            states: of layer ``depth``, ``(B, S, D)``, to go on from; ``None`` begins at the tokens.
            depth: where ``states`` are from.

        Returns:
            Hidden states ``(B, S, D)`` and mask ``(B, S)``, as the heads read them.
        """
        return last_states(self.base, batch.layout, batch.batch, gate, states=states, depth=depth)

    def run(self, gates: Gates) -> Iterator[tuple[ExampleBatch, Tensor, Tensor]]:
        """Pass every batch through the gated experts, and yield it with what ``forward`` returns."""
        depth = 0 if self.trunk is None else self.trunk.depth
        for batch in self.batches:
            yield batch, *self.forward(batch, gates(batch.positions), states=self.states(batch), depth=depth)

    @torch.inference_mode()
    def losses(self, head: Head, gates: Gates) -> list[tuple[float, int]]:
        """Return the summed loss of each example in nats, and of how many terms it is the sum, in their order."""
        loss_of: dict[int, float] = {}
        for batch, hidden, mask in self.run(gates):
            loss_of.update(zip(batch.positions, head.loss(hidden, mask, batch.targets).tolist(), strict=True))
        return [(loss_of[i], example.units) for i, example in enumerate(self.examples)]
