"""Contracts: for each kind of thing that can be added, the laws that every one of them keeps, as tests to run.

A contract is a class of tests; pytest runs a subclass that says what is tested, and ``Contract.check`` runs it without:

    from dynamorouter.testing import RouterContract

    class TestNearest(RouterContract):
        router = Nearest
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamorouter.utils.lazy import lazy_names

__all__ = [
    "ArmContract",
    "Contract",
    "HeadContract",
    "MergeContract",
    "MetricContract",
    "PromptContract",
    "RouterContract",
    "SourceContract",
]

if TYPE_CHECKING:
    from dynamorouter.testing.arms import ArmContract
    from dynamorouter.testing.contract import Contract
    from dynamorouter.testing.heads import HeadContract
    from dynamorouter.testing.merges import MergeContract
    from dynamorouter.testing.metrics import MetricContract
    from dynamorouter.testing.prompts import PromptContract
    from dynamorouter.testing.routers import RouterContract
    from dynamorouter.testing.sources import SourceContract
else:
    __getattr__, __dir__ = lazy_names(__name__)
