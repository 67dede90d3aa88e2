"""A registry is filled by its package's modules, whatever went wrong the first time."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamorouter.registry import Registry


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[type]]:
    """Return the registry of a package whose second module cannot be imported unless ``solid`` can."""
    package = tmp_path / "shapes"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from dynamorouter.registry import Registry\nall = Registry('shape', 'shapes')\n"
    )
    (package / "flat.py").write_text("from shapes import all\n\n@all.register('disc')\nclass Disc: ...\n")
    (package / "round.py").write_text(
        "from shapes import all\n\n@all.register('ball')\nclass Ball: ...\n\nimport solid\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    registry: Registry[type] = importlib.import_module("shapes").all
    yield registry
    for name in [name for name in sys.modules if name.partition(".")[0] in ("shapes", "solid")]:
        del sys.modules[name]


def test_a_registry_is_whole_once_what_failed_can_be_imported(shapes: Registry[type], tmp_path: Path) -> None:
    for _ in range(2):  # it does not take what it has for all there is
        with pytest.raises(ModuleNotFoundError, match="solid"):
            shapes.names()
    (tmp_path / "solid.py").write_text("")
    importlib.invalidate_caches()
    assert shapes.names() == ["ball", "disc"]


def test_a_name_is_given_once(shapes: Registry[type], tmp_path: Path) -> None:
    (tmp_path / "solid.py").write_text("")
    importlib.invalidate_caches()
    assert "disc" in shapes
    with pytest.raises(ValueError, match="shape 'ball' is registered twice"):
        shapes.register("ball")(int)
