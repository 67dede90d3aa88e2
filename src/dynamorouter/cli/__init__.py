"""The command line: parse, call one function, print."""

from __future__ import annotations
