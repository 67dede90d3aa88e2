"""The routers and the poolings by name; torch is imported when one of them is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamorouter.registry import Registry

if TYPE_CHECKING:
    from dynamorouter.routing.base import Pooling, Router

ATTENTION = "attention"
"""The pooling that a network learns; all others have no parameters and are in ``poolings``."""

routers: Registry[type[Router]] = Registry(
    "router", "dynamorouter.routing", group="routers", contract="dynamorouter.routing.base:Router"
)
poolings: Registry[Pooling] = Registry(
    "pooling",
    "dynamorouter.routing",
    group="poolings",
    contract="dynamorouter.routing.base:Pooling",
    instances=True,
    decorator="pooling",
)
