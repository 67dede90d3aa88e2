"""Low-rank factors of one expert on one layer (Hu et al., 2021).

Letters: D in, O out, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Factors:
    """One expert's change to one layer, ``scaling * B @ A``.

    Attributes:
        a: ``(R, D)``.
        b: ``(O, R)``.
        scaling: alpha / R, or alpha / sqrt(R) with rsLoRA (Kalajdzievski, 2023).
    """

    a: Tensor
    b: Tensor
    scaling: float

    def squared_norm(self) -> float:
        """Return the squared Frobenius norm of ``scaling * B @ A`` without the product: the trace of B'B AA'."""
        a, b = self.a.double(), self.b.double()
        return self.scaling * self.scaling * max(0.0, float(((b.T @ b) * (a @ a.T)).sum()))
