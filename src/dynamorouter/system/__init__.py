"""The finished thing: System, Library, changes to a saved system."""

from __future__ import annotations

from dynamorouter.system.system import System

__all__ = ["System"]
