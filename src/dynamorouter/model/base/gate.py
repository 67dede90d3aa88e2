"""What a gate is: how the rows of a batch use the experts.

Letters: B batch, S positions, D in, O out, N some of the rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from dynamorouter.model.lora.bank import LoraBank

Dropout = float | Tensor
"""One probability for all rows, or one for each, ``(B,)``."""


class Gate(Protocol):
    """How the rows of a batch use the experts of every bank.

    A class that inherits from it writes ``apply`` and ``select`` and sets ``rows``; banks, training and generation
    take it as it is.

    Attributes:
        rows: number of rows B.
    """

    rows: int

    @property
    def is_empty(self) -> bool:
        """Whether no row uses any expert, so that the bare base can run."""
        return False

    def apply(self, bank: LoraBank, x: Tensor) -> Tensor:
        """Map ``(B, S, D)`` to ``(B, S, O)`` through the bank's frozen layer and its experts."""
        ...

    def select(self, rows: Tensor) -> Gate:
        """Return the gate of some of the rows, ``(N,)``."""
        ...

    def cached(self) -> Gate:
        """Return the same gate for many passes of one position each: what they share may be kept between them."""
        return self
