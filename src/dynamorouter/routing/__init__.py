"""Routers: from a batch's hidden states, or its words, to the experts that answer each row.

A router is one class with ``fit`` and ``route``, registered by its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamorouter.utils.lazy import lazy_names

__all__ = ["GradientRouter", "Route", "Router", "RouterInput", "build", "load", "save"]

if TYPE_CHECKING:
    from dynamorouter.routing.base import GradientRouter, Route, Router, RouterInput
    from dynamorouter.routing.serialization import build, load, save
else:
    __getattr__, __dir__ = lazy_names(__name__)
