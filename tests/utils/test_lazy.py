"""Names that are imported when they are first asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from dynamorouter.utils.lazy import imported_for_types


@pytest.fixture
def lodge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A package that offers ``Lamp`` of its module ``light``, and has a module ``attic`` beside it."""
    folder = tmp_path / "lodge"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "from dynamorouter.utils.lazy import lazy_names\n"
        "if TYPE_CHECKING:\n"
        "    from lodge.light import Lamp\n"
        "else:\n"
        "    __getattr__, __dir__ = lazy_names(__name__)\n"
    )
    (folder / "light.py").write_text("class Lamp:\n    pass\n")
    (folder / "attic.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("lodge")
    for name in [name for name in sys.modules if name.partition(".")[0] == "lodge"]:
        del sys.modules[name]
    imported_for_types.cache_clear()


def test_a_name_is_imported_once_when_it_is_asked_for(lodge: ModuleType) -> None:
    assert "lodge.light" not in sys.modules
    lamp = lodge.Lamp
    assert lamp is sys.modules["lodge.light"].Lamp
    assert vars(lodge)["Lamp"] is lamp


def test_names_are_listed_before_they_are_imported(lodge: ModuleType) -> None:
    assert {"Lamp", "__name__"} <= set(dir(lodge))
    assert "lodge.light" not in sys.modules


def test_a_module_is_still_imported_by_its_name(lodge: ModuleType) -> None:
    namespace: dict[str, object] = {}
    exec("from lodge import attic", namespace)
    assert namespace["attic"] is sys.modules["lodge.attic"]


def test_an_unknown_name_is_refused_with_the_nearest(lodge: ModuleType) -> None:
    with pytest.raises(
        AttributeError, match=r"module 'lodge' has no attribute 'Lmap' \(did you mean 'Lamp'\?\); it offers Lamp"
    ):
        _ = lodge.Lmap
    assert not hasattr(lodge, "light_switch")
