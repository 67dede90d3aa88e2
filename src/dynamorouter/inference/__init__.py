"""From rows to answers: the trunk once, the routes, then the chosen experts; generation.

Knows nothing of training, so that what serves a system carries none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamorouter.utils.lazy import lazy_names

__all__ = ["Engine", "Generated", "Prediction"]

if TYPE_CHECKING:
    from dynamorouter.inference.engine import Engine
    from dynamorouter.inference.generation.generate import Generated
    from dynamorouter.inference.prediction import Prediction
else:
    __getattr__, __dir__ = lazy_names(__name__)
