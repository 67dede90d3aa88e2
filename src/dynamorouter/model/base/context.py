"""What belongs to the pass that is running over a base, and to the experts that lie over it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from dynamorouter.errors import BankShapeError
from dynamorouter.model.base.gate import Dropout, Gate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from weakref import ref

    from dynamorouter.model.lora.bank import LoraBank


class Cover(Protocol):
    """What lies over a base, such as experts that are mounted."""

    @property
    def banks(self) -> Mapping[str, LoraBank]:
        """The banks that lie over layers, by the layer's name."""


class PassContext:
    """What the layers of one base share while a pass runs over them.

    Attributes:
        lock: held by the thread whose pass runs, since gate, hooks, the blocks that are shown and the experts that are
            mounted belong to one pass.
        gate: of the pass that is running; ``None`` for the bare base.
        dropout: on the experts' input.
        mounts: what has been mounted, the last of them being at work.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        self.gate: Gate | None = None
        self.dropout: Dropout = 0.0
        self.mounts: list[ref[Cover]] = []

    @contextmanager
    def hold(self, gate: Gate | None, *, dropout: Dropout = 0.0) -> Iterator[None]:
        """Set the gate, and the dropout on the experts' input, for a ``with`` block that other threads wait for."""
        with self.lock:
            before = self.gate, self.dropout
            self.gate = None if gate is None or gate.is_empty else gate
            self.dropout = dropout
            try:
                yield
            finally:
                self.gate, self.dropout = before

    def apply(self, bank: LoraBank, x: Tensor) -> Tensor:
        """Map ``(B, S, D)`` to ``(B, S, O)`` through a bank's frozen layer and the experts that are gated.

        Raises:
            BankShapeError: the gate is of another number of rows.
        """
        if self.gate is None:
            return bank.base(x)  # type: ignore[no-any-return]
        if x.shape[0] != self.gate.rows:
            raise BankShapeError(
                f"the gate has {self.gate.rows} rows, but the batch has {x.shape[0]}; set one row per input"
            )
        return self.gate.apply(bank, x)
