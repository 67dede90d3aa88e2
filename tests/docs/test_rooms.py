"""The rooms of the package: what each offers, and that every page that names them names all of them, in order."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dynamorouter
from dynamorouter.utils.lazy import imported_for_types

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import house
import house_picture

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "dynamorouter"
ROOMS = sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))
PUBLIC = """System Prediction Expert Library Base Task Record Router Route
merge_experts fit_experts fit_router compose load_adapter"""


@pytest.mark.parametrize("name", PUBLIC.split())
def test_a_public_name_is_at_the_top(name: str) -> None:
    assert name in dynamorouter.__all__
    assert getattr(dynamorouter, name).__name__ == name


def test_the_top_offers_what_it_names() -> None:
    assert {*imported_for_types("dynamorouter"), "__version__"} == set(dynamorouter.__all__)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_for_and_offers_what_it_names(room: str) -> None:
    package = importlib.import_module(f"dynamorouter.{room}")
    assert package.__doc__
    assert set(imported_for_types(package.__name__)) == set(package.__all__)
    assert [
        name for name in package.__all__ if getattr(package, name).__module__.split(".")[:2] != ["dynamorouter", room]
    ] == []
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert not modules & set(package.__all__), "a name is hidden as soon as the module of that name is imported"


def test_importing_the_package_and_every_room_loads_nothing_heavy() -> None:
    imports = "; ".join(f"import dynamorouter.{room}" for room in ROOMS)
    heavy = "{'torch', 'transformers', 'numpy', 'pydantic', 'hydra', 'rich'} & sys.modules.keys()"
    code = f"import sys; {imports}; dir(dynamorouter); print(sorted({heavy}))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"


def test_the_contract_the_page_and_the_measure_name_the_same_floors() -> None:
    floors = house_picture.contract()
    assert [list(captions) for captions in house_picture.documented()] == floors
    assert sorted(room for rooms in floors for room in rooms if (SOURCE / room).is_dir()) == ROOMS
    assert [
        [room for room in rooms if (SOURCE / room).exists() or (SOURCE / f"{room}.py").exists()]
        for rooms in house.ROOMS
    ] == floors


def test_the_picture_is_that_of_the_page() -> None:
    drawn = house_picture.picture(house_picture.documented())
    assert house_picture.PICTURE.read_text(encoding="utf-8") == drawn, "run: python tools/house_picture.py"


def test_contributing_names_every_room_and_no_other() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    ten_lines = re.search(r"## The house in ten lines\n(.*?)\n## ", page, flags=re.DOTALL)
    assert ten_lines
    assert sorted(re.findall(r"`(\w+)/`", ten_lines[1])) == ROOMS
    assert len(re.findall(r"^\d+\. ", ten_lines[1], flags=re.MULTILINE)) == 10
    places = re.findall(r"`((?:\w+/)+)`", page.partition("## Where each kind of thing goes")[2].partition("\n## ")[0])
    assert [place for place in places if not ((SOURCE / place).is_dir() or (ROOT / place).is_dir())] == []
    assert {place.partition("/")[0] for place in places} >= set(ROOMS) - {"config"}


@pytest.mark.parametrize("name", ["", *(room for room in ROOMS if room != "cli"), "errors", "registry"])
def test_every_room_has_its_page_in_the_reference(name: str) -> None:
    page = ROOT / "docs" / "reference" / f"{name or 'dynamorouter'}.md"
    module = f"dynamorouter.{name}".rstrip(".")
    assert f"\n::: {module}\n" in page.read_text(encoding="utf-8")
    assert f"[`{module}`]({page.name})" in (page.parent / "index.md").read_text(encoding="utf-8")
