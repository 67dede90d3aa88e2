"""The routers by name; torch is imported when one of them is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamorouter.registry import Registry

if TYPE_CHECKING:
    from dynamorouter.routing.base import Router

routers: Registry[type[Router]] = Registry(
    "router", "dynamorouter.routing", group="routers", contract="dynamorouter.routing.base:Router"
)
