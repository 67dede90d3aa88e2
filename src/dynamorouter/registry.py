"""Named things that are found without being listed by hand: those built in, and those that other packages bring.

A registry maps names to classes, functions or objects. Built-in ones register themselves with a decorator in a module
of one package; which names there are is read from the source of those modules, and a module is imported only when one
of its names is asked for. Other distributions bring more through an entry point of the registry's group:

    [project.entry-points."dynamorouter.routers"]
    nearest = "my_routers:Nearest"

A plugin is imported when it is asked for, and one that is broken is an error then, which names its distribution.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from importlib.abc import InspectLoader
from importlib.util import find_spec
from pkgutil import iter_modules, resolve_name
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dynamorouter.errors import ConfigError, one_of, suggest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")

PREFIX = "dynamorouter."
"""What the entry-point groups begin with."""
REGISTRIES = {
    "arms": "dynamorouter.bench.arms.base:arms",
    "heads": "dynamorouter.model.heads.base:heads",
    "kinds": "dynamorouter.tasks.kinds.base:head_kinds",
    "merges": "dynamorouter.merging.registry:merges",
    "metrics": "dynamorouter.metrics.base:metrics",
    "poolings": "dynamorouter.routing.registry:poolings",
    "prompts": "dynamorouter.model.text.prompts:prompts",
    "routers": "dynamorouter.routing.registry:routers",
    "sources": "dynamorouter.data.sources:sources",
}
"""Where the registry of each group is."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """An entry point by which a distribution brings something.

    Attributes:
        group: of the registry, such as ``routers``.
        name: by which it is asked for.
        target: ``module:object``.
        distribution: the distribution's name.
        version: the distribution's version.
    """

    group: str
    name: str
    target: str
    distribution: str
    version: str

    @classmethod
    def of(cls, point: EntryPoint) -> Plugin:
        """Describe an entry point of one of our groups."""
        dist = point.dist
        named = ("unknown", "unknown") if dist is None else (str(dist.name), str(dist.version))
        return cls(point.group.removeprefix(PREFIX), point.name, point.value, *named)

    def __str__(self) -> str:
        return f"{self.target} of distribution {self.distribution} {self.version}"


class PluginError(ConfigError):
    """A plugin cannot be imported, is not what its group holds, or takes the name of something else."""


class Registry(Generic[T]):
    """Names to classes, functions or objects.

    Args:
        kind: what the names are, for messages, such as ``"router"``.
        package: dotted name of the package whose modules hold the built-in entries.
        group: name of the registry, and after ``dynamorouter.`` of the group of entry points that add to it.
        contract: ``module:Class`` that a plugin is a subclass of, or with ``instances`` an object of; any
            callable will do where it is empty.
        instances: whether the entries are objects of ``contract``.
        decorator: how the decorator that registers is written in the modules; ``GROUP.register`` by default.
    """

    def __init__(
        self,
        kind: str,
        package: str,
        *,
        group: str,
        contract: str = "",
        instances: bool = False,
        decorator: str = "",
    ) -> None:
        self.kind = kind
        self.package = package
        self.group = group
        self.contract = contract
        self.instances = instances
        self.decorator = decorator or f"{group}.register"
        self._entries: dict[str, T] = {}
        self._homes: dict[str, str] = {}  # module that registered each entry
        self._brought: dict[str, T] = {}  # what plugins brought, once asked for

    def register(self, name: str, *, home: str | None = None) -> Callable[[T], T]:
        """Return a decorator that registers its argument under ``name``.

        Args:
            name: by which it is asked for.
            home: the module that gives it; by default the one that defines it.

        Raises:
            ValueError: another module gave the name already. A module that is imported anew, since it failed the
                first time, may give its names again.
        """

        def add(entry: T) -> T:
            module = home or str(getattr(entry, "__module__", ""))
            if name in self._entries and self._homes[name] != module:
                raise ValueError(
                    f"{self.kind} {name!r} is registered twice, by {self._homes[name]} and by {module}; rename one"
                )
            self._homes[name] = module
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> T:
        """Return the entry called ``name``, importing no other.

        Raises:
            ConfigError: there is none; the message lists what there is.
            PluginError: a plugin of that name cannot be used.
        """
        plugins = self._plugins_of(name)
        home = self.built_in.get(name)
        if len(plugins) > (0 if home else 1):
            raise self._clash(name, plugins)
        if plugins:
            if name not in self._brought:
                self._brought[name] = self._load(plugins[0])
            return self._brought[name]
        if name in self._entries:
            return self._entries[name]
        if home:
            return self._import(name, home)
        raise ConfigError(f"unknown {self.kind} {name!r}{suggest(name, self.names())}; allowed: {one_of(self.names())}")

    def names(self) -> list[str]:
        """Return all names, sorted; nothing is imported for it."""
        return sorted({*self.built_in, *self._entries, *(plugin.name for plugin in self.plugins())})

    def items(self) -> list[tuple[str, T]]:
        """Return names and entries, sorted; plugins that cannot be used are left out (see ``list plugins``)."""
        return list(self._usable(self.names()))

    def name_of(self, entry: T) -> str | None:
        """Return the name under which an entry is registered, or ``None``."""
        brought = {plugin.name for plugin in self.plugins()}
        named = {**self._entries, **dict(self._usable(brought))}
        return next((name for name, named_entry in named.items() if named_entry is entry), None)

    def plugins(self) -> list[Plugin]:
        """Return what other distributions bring, in the order of their names."""
        return [plugin for plugin in all_plugins() if plugin.group == self.group]

    @cached_property
    def built_in(self) -> dict[str, str]:
        """The built-in names and the module of each, as read from the package's source.

        Raises:
            ValueError: two entries have the same name.
        """
        homes: dict[str, str] = {}
        for info in iter_modules(import_module(self.package).__path__, f"{self.package}."):
            for name in _decorated(info.name, self.decorator):
                if name in homes:
                    raise ValueError(
                        f"{self.kind} {name!r} is registered twice, by {homes[name]} and by {info.name}; rename one"
                    )
                homes[name] = info.name
        return homes

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.built_in or name in self._entries or name in {plugin.name for plugin in self.plugins()}

    def _usable(self, names: Iterable[str]) -> Iterator[tuple[str, T]]:
        for name in names:
            try:
                yield name, self.get(name)
            except PluginError:
                continue

    def _plugins_of(self, name: str) -> list[Plugin]:
        return [plugin for plugin in self.plugins() if plugin.name == name]

    def _clash(self, name: str, plugins: list[Plugin]) -> PluginError:
        owners = [str(plugin) for plugin in plugins]
        if name in self.built_in:
            owners.insert(0, f"{self.built_in[name]} of dynamorouter itself")
        return PluginError(
            f"{self.kind} {name!r} is given by {' and by '.join(owners)}; a name means one thing: uninstall a "
            f"distribution, or rename its entry point in group {PREFIX}{self.group}"
        )

    def _import(self, name: str, home: str) -> T:
        """Import the module of a built-in entry; where that fails, the next look-up tries again."""
        try:
            import_module(home)
        except BaseException:
            for half in [half for half, module in self._homes.items() if module not in sys.modules]:
                del self._entries[half], self._homes[half]
            raise
        return self._entries[name]

    def _load(self, plugin: Plugin) -> Any:
        """Import a plugin and check that it is what the registry holds."""
        where = f"{self.kind} {plugin.name!r} ({plugin})"
        remedy = f"mend or upgrade {plugin.distribution}, or uninstall it"
        try:
            entry = resolve_name(plugin.target)
        except Exception as error:  # whatever a stranger's module raises
            raise PluginError(f"{where} cannot be imported: {type(error).__name__}: {error}; {remedy}") from error
        fault = self.fault(entry)
        if fault:
            raise PluginError(f"{where} {fault}; {remedy}")
        if self._entries.get(plugin.name, entry) is not entry:
            raise PluginError(
                f"{where} is another thing than what {self._homes[plugin.name]} registered as {plugin.name!r}; "
                f"rename one, or {remedy}"
            )
        return entry

    def fault(self, entry: Any) -> str:
        """Return why ``entry`` cannot be in this registry, or an empty string."""
        if not self.contract:
            return "" if callable(entry) else f"is a {type(entry).__name__}, but a {self.kind} is a function"
        contract = resolve_name(self.contract)
        if self.instances:
            fits = isinstance(entry, contract)
            return "" if fits else f"is no {contract.__name__}, but a {self.kind} is one"
        if not (isinstance(entry, type) and issubclass(entry, contract)):
            return f"is no subclass of {self.contract.replace(':', '.')}, but a {self.kind} is one"
        lacking = getattr(entry, "__abstractmethods__", ())
        return f"lacks {one_of(lacking)}" if inspect.isabstract(entry) else ""


@cache
def all_plugins() -> tuple[Plugin, ...]:
    """Return the plugins of all groups, also of those that do not exist, by group and name; reads metadata once."""
    from importlib.metadata import entry_points  # slow to import, and rarely needed

    by_group = entry_points()
    groups = [group for group in by_group.groups if group.startswith(PREFIX)]
    points = [point for group in groups for point in by_group.select(group=group)]
    return tuple(sorted((Plugin.of(point) for point in points), key=lambda p: (p.group, p.name, p.distribution)))


def plugin_state(plugin: Plugin) -> str:
    """Return ``ok``, or why a plugin cannot be used; imports it."""
    if plugin.group not in REGISTRIES:
        hint = suggest(plugin.group, REGISTRIES)
        return f"there is no group {PREFIX}{plugin.group}{hint}; allowed: {one_of(REGISTRIES)}"
    try:
        find_registry(plugin.group).get(plugin.name)
    except PluginError as error:
        return str(error)
    return "ok"


def find_registry(group: str) -> Registry[Any]:
    """Return the registry of a group, such as ``routers``; imports its module.

    Raises:
        ConfigError: there is no such group.
    """
    if group not in REGISTRIES:
        raise ConfigError(f"unknown group {group!r}{suggest(group, REGISTRIES)}; allowed: {one_of(REGISTRIES)}")
    registry = resolve_name(REGISTRIES[group])
    assert isinstance(registry, Registry)
    return registry


def _decorated(module: str, decorator: str) -> list[str]:
    """Read from a module's source which names its top-level definitions register by a decorator."""
    spec = find_spec(module)
    source = spec.loader.get_source(module) if spec and isinstance(spec.loader, InspectLoader) else None
    if not source or f"@{decorator}(" not in source:
        return []
    calls = [
        call
        for node in ast.parse(source).body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
        for call in node.decorator_list
        if isinstance(call, ast.Call) and ast.unparse(call.func) == decorator
    ]
    return [ast.literal_eval(call.args[0]) for call in calls]
