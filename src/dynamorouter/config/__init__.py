"""The settings of a run: the schema, how it is composed, what is checked across rooms.

Each room declares its own settings; this one puts them together. Configuration stops at the builders: layers and
functions get plain values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamorouter.utils.lazy import lazy_names

__all__ = ["Config", "list_names", "load"]

if TYPE_CHECKING:
    from dynamorouter.config.compose import load
    from dynamorouter.config.files import list_names
    from dynamorouter.config.schema import Config
else:
    __getattr__, __dir__ = lazy_names(__name__)
