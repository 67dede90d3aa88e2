"""Where generated programs run: a subprocess without files, network or new processes."""

from __future__ import annotations
