"""Named things that are found without being listed by hand.

A registry maps a name to a class or function. Its package's modules register themselves on import, and
are imported only when a name is first looked up, so that listing names costs no torch import elsewhere.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from dynamorouter.errors import ConfigError, one_of, suggest

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to classes or functions, filled by the modules of one package.

    Args:
        kind: what the names are, for messages, such as ``"router"``.
        package: dotted name of the package whose modules register themselves when imported.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, T] = {}
        self._unfinished: set[str] = set()  # names from a load that failed; its modules may give them again
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers its argument under ``name``.

        Raises:
            ValueError: the name is taken already by something else.
        """

        def add(entry: T) -> T:
            if name in self._entries and name not in self._unfinished:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._unfinished.discard(name)
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> T:
        """Return the entry called ``name``.

        Raises:
            ConfigError: there is none; the message lists what there is.
        """
        self._load()
        if name not in self._entries:
            raise ConfigError(
                f"unknown {self.kind} {name!r}{suggest(name, self._entries)}; allowed: {one_of(self._entries)}"
            )
        return self._entries[name]

    def names(self) -> list[str]:
        """Return all names, sorted."""
        self._load()
        return sorted(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def _load(self) -> None:
        """Import the package's modules; where one cannot be imported, the next look-up tries again."""
        if self._loaded:
            return
        try:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
        except BaseException:
            self._unfinished.update(self._entries)
            raise
        self._unfinished.clear()
        self._loaded = True
