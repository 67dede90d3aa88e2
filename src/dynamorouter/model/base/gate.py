"""Where the layers of a base find the gate of the pass that is running."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

from torch import Tensor

from dynamorouter.model.lora.gates import FusionGate, RowGate, SoftGate

Gate = RowGate | SoftGate | FusionGate


Dropout = float | Tensor
"""One probability for all rows, or one for each, ``(B,)``."""


class GateSlot:
    """Where the banks of one base find the gate of the forward pass that is running.

    Attributes:
        lock: held by the thread whose pass runs, since gate, hooks and the blocks that are shown belong to one pass.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        self.gate: Gate | None = None
        self.dropout: Dropout = 0.0

    @contextmanager
    def hold(self, gate: Gate | None, *, dropout: Dropout = 0.0) -> Iterator[None]:
        """Set the gate, and the dropout on the experts' input, for a ``with`` block that other threads wait for."""
        with self.lock:
            before = self.gate, self.dropout
            self.gate = None if isinstance(gate, RowGate) and gate.empty else gate
            self.dropout = dropout
            try:
                yield
            finally:
                self.gate, self.dropout = before
