"""A finished complexity system behind three verbs: write, route, and say how complex an instruction is.

    router = ComplexityRouter.from_pretrained("runs/complexity/system")
    print(router.generate(["Name three fruits."]))

All of it is ``System``'s; nothing here needs a parser.

Letters: B batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynamorouter.errors import ConfigError
from dynamorouter.routing.complexity import TierRouter
from dynamorouter.system.system import System
from dynamorouter.tasks.text import check_rows


class ComplexityRouter:
    """Instructions in, texts out, each written by the expert of its tier.

    Args:
        system: with a router of kind ``complexity``.

    Raises:
        ConfigError: the system has another router, or none.
    """

    def __init__(self, system: System) -> None:
        if not isinstance(system.router, TierRouter):
            raise ConfigError(
                f"the system's router is {type(system.router).__name__}, not one of kind 'complexity'; "
                "make one with 'dynamorouter run complexity', or use System for this one"
            )
        self.system = system
        self._router = system.router

    @staticmethod
    def from_pretrained(path: str | Path, *, device: str = "auto", precision: str = "fp32") -> ComplexityRouter:
        """Load a saved system (see ``System.load``).

        Raises:
            LibraryError: the folder is no system, or something in it is damaged or missing.
            ConfigError: its router is of another kind.
        """
        return ComplexityRouter(System.load(path, device=device, precision=precision))

    def generate(
        self, instructions: Sequence[str], inputs: Sequence[str | None] | None = None, **generation: Any
    ) -> list[str]:
        """Write an answer to each instruction (see ``System.generate``)."""
        return self.system.generate(instructions, inputs, **generation)

    def route(self, instructions: Sequence[str], inputs: Sequence[str | None] | None = None) -> list[dict[str, float]]:
        """Return the probability of every tier for each instruction (see ``System.route``)."""
        return self.system.route(instructions, inputs)

    def complexity(self, instructions: Sequence[str], inputs: Sequence[str | None] | None = None) -> list[float]:
        """Return the estimated complexity of each instruction, between 0 and 1.

        Raises:
            DataError: an instruction cannot be used.
        """
        rows = check_rows(instructions, inputs)
        by_position: dict[int, float] = {}
        for positions, chunk in self.system.engine.chunks(rows):
            complexities = self._router.complexity(chunk.router_input()).tolist()
            by_position.update(zip(positions, complexities, strict=True))
        return [by_position[position] for position in range(len(rows))]
