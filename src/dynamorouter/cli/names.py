"""What ``list`` prints: the names that a setting or an option may take, with a line on each, and the plugins."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from dynamorouter.errors import ConfigError, one_of, suggest
from dynamorouter.registry import REGISTRIES, PluginError, Registry, all_plugins, find_registry, plugin_state

PLUGINS = "plugins"


def list_(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="recipes, presets, tasks, bases, data, routers, merges, heads, metrics, sources, arms, prompts; or "
            "plugins: what other packages bring, and whether it can be used.",
        ),
    ],
    search_path: Annotated[
        list[Path] | None, typer.Option("--search-path", metavar="DIR", help="A further folder laid out like conf/.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what a name may be, with a line on each."""
    listed = plugin_rows() if kind == PLUGINS else names_with_lines(kind, search_path or [])
    if as_json:
        print(json.dumps(listed, indent=2, ensure_ascii=False))
        return
    from dynamorouter.cli.tables import print_names, print_rows

    if isinstance(listed, dict):
        print_names(listed)
    elif listed:
        print_rows(tuple(listed[0]), [tuple(row.values()) for row in listed])
    else:
        print("no installed package brings anything; docs/extending/ says how one does")


def names_with_lines(kind: str, folders: Sequence[Path]) -> dict[str, str]:
    """Return the names of a kind, such as ``routers``, with a line on each.

    Args:
        kind: what ``list`` lists, other than plugins.
        folders: further folders laid out like ``conf/``.

    Raises:
        ConfigError: there is no such kind.
    """
    from dynamorouter.config.files import CONF, KINDS, list_names

    if kind not in KINDS and kind not in REGISTRIES:
        kinds = {*KINDS, *REGISTRIES, PLUGINS}
        raise ConfigError(f"cannot list {kind!r}{suggest(kind, kinds)}; allowed: {one_of(kinds)}")
    lines = list_names(kind, [CONF, *folders]) if kind in KINDS else {}
    if kind not in REGISTRIES:
        return lines
    registry = find_registry(kind)
    files_only = set(registry.built_in) if kind in KINDS else set()  # a router's file says more than its class
    return lines | {name: line_on(registry, name) for name in registry if name not in {*lines, *files_only}}


def line_on(registry: Registry[Any], name: str) -> str:
    """Return one line on what is registered under a name, or why it cannot be used."""
    try:
        entry = registry.get(name)
    except PluginError as error:
        return f"cannot be used: {error}"
    about = getattr(entry, "about", "") or (inspect.getdoc(entry) or "").partition("\n")[0]
    paper, needs = getattr(entry, "paper", ""), getattr(entry, "needs", None)
    return f"{about} [{paper}]" + (f" Needs {needs}." if needs else "") if paper else about


def plugin_rows() -> list[dict[str, str]]:
    """Return what other distributions bring: group, name, target, distribution, version, and state."""
    return [{**asdict(plugin), "state": plugin_state(plugin)} for plugin in all_plugins()]
