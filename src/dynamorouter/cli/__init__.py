"""The command line: parse, call one function, print.

Nothing here is for other rooms; ``python -m dynamorouter`` and the console script start ``main.main``.
"""

from __future__ import annotations

__all__: list[str] = []
