"""The settings of a run: the schema, how it is composed, what is checked across its branches."""

from __future__ import annotations
