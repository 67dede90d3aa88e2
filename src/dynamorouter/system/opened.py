"""What the modules that change a system in memory need of it; ``System`` is one, and offers their work as methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from dynamorouter.inference.engine import Engine
from dynamorouter.model.base.base import Base
from dynamorouter.model.lora.expert import Expert
from dynamorouter.routing.base import Router
from dynamorouter.routing.pooling import FeatureSample
from dynamorouter.system.library import Library
from dynamorouter.system.seen import SeenRows


class OpenSystem(Protocol):
    """A system in memory: bases, experts and a router, and what a router has read of experts' rows.

    Attributes:
        bases: by name.
        experts: in the order of their indices.
        names: theirs.
        router_base: name of the base that the router reads.
        info: further facts.
        skills: what a router has read of experts' rows since the system was opened.
        library: where experts' folders are, if they are on disk.
        seen: the rows that were learned from, as far as they are known.
        engine: the passes over the bases.
    """

    bases: dict[str, Base]
    experts: list[Expert]
    names: list[str]
    router_base: str
    info: dict[str, Any]
    skills: dict[str, FeatureSample]
    library: Library | None
    seen: SeenRows
    engine: Engine

    @property
    def router(self) -> Router | None:
        """What chooses among ``classes``."""

    @property
    def classes(self) -> list[str]:
        """Names of the experts that the router was fitted on, by its own index."""

    def use_router(self, router: Router | None, classes: Sequence[str]) -> None:
        """Route by another router from now on."""

    def use_experts(self, experts: Sequence[Expert], bases: Mapping[str, Base]) -> None:
        """Answer with other experts, over other bases, from now on."""

    def skill(self, name: str) -> FeatureSample | None:
        """Return what a router read of some of an expert's rows, if it was kept."""


@contextmanager
def undone_on_failure(system: OpenSystem) -> Iterator[None]:
    """Put bases, experts, skills and seen rows back where what is done inside fails, whatever was mounted meanwhile."""
    bases, experts = system.bases, system.experts
    skills, seen = dict(system.skills), dict(system.seen.by_expert)
    try:
        yield
    except BaseException:
        system.use_experts(experts, bases)
        system.skills, system.seen.by_expert = skills, seen
        raise
