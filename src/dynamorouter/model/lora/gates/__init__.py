"""Gates: how the rows of a batch use the experts of a bank; one file for each, all of them a ``model.base.gate.Gate``.

``RowGate(torch.tensor([0, 2, -1]))`` sends row 0 through expert 0, row 1 through expert 2, and row 2 through none.
"""

from __future__ import annotations

from dynamorouter.model.lora.gates.fusion import FusionGate
from dynamorouter.model.lora.gates.row import RowGate
from dynamorouter.model.lora.gates.soft import SoftGate

__all__ = ["FusionGate", "RowGate", "SoftGate"]
