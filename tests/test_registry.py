"""A registry finds what is built in by reading, what others bring by their metadata, and imports what is asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import dynamorouter.registry as registry_module
from dynamorouter.cli.main import app
from dynamorouter.errors import ConfigError
from dynamorouter.registry import REGISTRIES, PluginError, Registry, all_plugins, find_registry, plugin_state
from support.plugins import install

FLAT = "from shapes import shapes\n\n@shapes.register('disc')\nclass Disc: ...\n"
ROUND = "from shapes import shapes\n\n@shapes.register('ball')\nclass Ball: ...\n\nimport solid\n"
ROOT = "from dynamorouter.registry import Registry\nshapes = Registry('shape', 'shapes', group='shapes')\n"


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[type]]:
    """Return the registry of a package whose second module cannot be imported unless ``solid`` can."""
    package = tmp_path / "shapes"
    package.mkdir()
    for name, source in (("__init__", ROOT), ("flat", FLAT), ("round", ROUND)):
        (package / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(REGISTRIES, "shapes", "shapes:shapes")
    all_plugins.cache_clear()
    yield importlib.import_module("shapes").shapes
    all_plugins.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] in ("shapes", "solid", "more", "other")]:
        del sys.modules[name]


def bring(folder: Path, name: str, source: str, **targets: str) -> None:
    """Install a distribution that adds shapes."""
    install(folder, name, modules={name: source}, points={"shapes": targets})
    importlib.invalidate_caches()
    all_plugins.cache_clear()


def test_names_are_read_and_only_what_is_asked_for_is_imported(shapes: Registry[type]) -> None:
    assert shapes.names() == ["ball", "disc"]
    assert {"shapes.flat", "shapes.round"}.isdisjoint(sys.modules)
    assert shapes.get("disc").__name__ == "Disc"
    assert "shapes.round" not in sys.modules


def test_what_failed_is_imported_anew_when_it_can_be(shapes: Registry[type], tmp_path: Path) -> None:
    for _ in range(2):  # half a module is not taken for the whole
        with pytest.raises(ModuleNotFoundError, match="solid"):
            shapes.get("ball")
    (tmp_path / "solid.py").write_text("")
    importlib.invalidate_caches()
    assert shapes.get("ball") is sys.modules["shapes.round"].Ball


def test_a_name_is_given_once(shapes: Registry[type], tmp_path: Path) -> None:
    shapes.get("disc")
    with pytest.raises(ValueError, match=r"shape 'disc' is registered twice, by shapes\.flat and by builtins"):
        shapes.register("disc")(int)
    (tmp_path / "shapes" / "again.py").write_text(FLAT)
    shapes.__dict__.pop("built_in")
    with pytest.raises(ValueError, match=r"by shapes\.again and by shapes\.flat"):
        shapes.names()


@pytest.mark.parametrize("group", sorted(REGISTRIES))
def test_what_is_read_is_what_the_modules_register(group: str) -> None:
    registry = find_registry(group)
    assert registry.group == group
    for home in set(registry.built_in.values()):
        importlib.import_module(home)
    registered = {name: home for name, home in registry._homes.items() if home.startswith("dynamorouter.")}
    assert registered == registry.built_in
    assert not any(registry.fault(registry.get(name)) for name in registry.built_in)


def test_a_plugin_is_found_by_its_entry_point(shapes: Registry[type], tmp_path: Path) -> None:
    bring(tmp_path, "more", "def cone(): ...\n", cone="more:cone")
    assert shapes.names() == ["ball", "cone", "disc"]
    assert "more" not in sys.modules
    assert shapes.get("cone") is sys.modules["more"].cone
    assert shapes.name_of(sys.modules["more"].cone) == "cone"
    assert [(str(plugin), plugin_state(plugin)) for plugin in shapes.plugins()] == [
        ("more:cone of distribution more 1.0", "ok")
    ]


def test_a_plugin_may_register_what_it_brings(shapes: Registry[type], tmp_path: Path) -> None:
    bring(tmp_path, "more", FLAT.replace("disc", "cone").replace("Disc", "Cone"), cone="more:Cone")
    assert shapes.get("cone") is sys.modules["more"].Cone


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("import nowhere\n", "more:cone", "cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("", "more:cone", "cannot be imported: AttributeError"),
        ("cone = 1\n", "more:cone", "is a int, but a shape is a function"),
    ],
)
def test_a_broken_plugin_hurts_only_who_asks_for_it(
    shapes: Registry[type], tmp_path: Path, source: str, target: str, reason: str
) -> None:
    (tmp_path / "solid.py").write_text("")
    bring(tmp_path, "more", source, cone=target)
    assert [name for name, _ in shapes.items()] == ["ball", "disc"]
    with pytest.raises(PluginError) as caught:
        shapes.get("cone")
    assert reason in str(caught.value)
    assert "distribution more 1.0" in str(caught.value)
    assert "mend or upgrade more, or uninstall it" in str(caught.value)
    assert plugin_state(shapes.plugins()[0]) == str(caught.value)


def test_a_plugin_class_keeps_the_contract() -> None:
    routers = find_registry("routers")
    assert routers.fault(int) == "is no subclass of dynamorouter.routing.base.Router, but a router is one"
    half = type("Half", (importlib.import_module("dynamorouter.routing.base").Router,), {"route": None})
    assert routers.fault(half) == "lacks fit, restore, state"
    assert find_registry("merges").fault(print) == "is no Method, but a merge method is one"


@pytest.mark.parametrize("other", ["built in", "plugin", "registered"])
def test_a_name_that_is_taken_is_an_error_that_names_both(shapes: Registry[type], tmp_path: Path, other: str) -> None:
    name = "disc" if other == "built in" else "cone"
    bring(tmp_path, "more", "def thing(): ...\n", **{name: "more:thing"})
    owner = "shapes.flat of dynamorouter itself"
    if other == "plugin":
        bring(tmp_path, "other", "def thing(): ...\n", cone="other:thing")
        owner = "other:thing of distribution other 1.0"
    if other == "registered":
        shapes.register("cone")(int)
        owner = "another thing than what builtins registered"
    with pytest.raises(PluginError) as caught:
        shapes.get(name)
    assert owner in str(caught.value)
    assert "more:thing of distribution more 1.0" in str(caught.value)
    assert "rename" in str(caught.value)
    assert len(set(shapes.names())) == len(shapes.names())


def test_an_unknown_name_is_met_with_those_that_there_are(shapes: Registry[type], tmp_path: Path) -> None:
    bring(tmp_path, "more", "def cone(): ...\n", cone="more:cone")
    with pytest.raises(ConfigError, match=r"unknown shape 'cune' \(did you mean 'cone'\?\); allowed: ball, cone, disc"):
        shapes.get("cune")


def test_plugins_are_listed_with_their_state(
    shapes: Registry[type], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = {"shapes": {"cone": "more:cone", "disc": "more:cone"}, "shape": {"cube": "more:cone"}}
    install(tmp_path, "more", modules={"more": "def cone(): ...\n"}, points=points)
    all_plugins.cache_clear()
    (tmp_path / "solid.py").write_text("")
    monkeypatch.setenv("COLUMNS", "300")
    assert {(plugin.group, plugin.name) for plugin in all_plugins() if plugin.distribution == "more"} == {
        ("shapes", "cone"),
        ("shapes", "disc"),
        ("shape", "cube"),
    }
    lines = listed("plugins", "--json")
    states = {(row["group"], row["name"]): row["state"] for row in lines if row["distribution"] == "more"}
    assert states["shapes", "cone"] == "ok"
    assert "shapes.flat of dynamorouter itself" in states["shapes", "disc"]
    assert "no group dynamorouter.shape (did you mean 'shapes'?)" in states["shape", "cube"]
    assert "more:cone" in CliRunner().invoke(app, ["list", "plugins"]).output
    assert listed("shapes", "--json")["disc"].startswith("cannot be used: shape 'disc' is given by")


def listed(*words: str) -> Any:
    """Return what ``list`` prints as JSON."""
    import json

    return json.loads(CliRunner().invoke(app, ["list", *words], catch_exceptions=False).output)


def test_lists_name_what_is_registered() -> None:
    assert set(listed("metrics", "--json")) >= {"accuracy", "f1", "bleu"}
    assert "The share of rows whose label is right." in listed("metrics", "--json")["accuracy"]
    assert registry_module.REGISTRIES.keys() >= {"arms", "heads", "merges", "metrics", "prompts", "routers", "sources"}
    assert "attention" in listed("routers", "--json")
