"""The measure of the house, on a house of a few lines where every figure can be counted by hand."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import house

SOURCES = {
    "__init__.py": "import dynamorouter.system.system.system\n",
    "registry.py": "from dynamorouter import errors\n",
    "errors.py": "import torch\n",
    "system/__init__.py": "",
    "system/system.py": (
        "from . import library\n"
        "class System:\n"
        "    def save(self, begin, *, advance=None):\n"
        "        found = begin\n"
        "        return found\n"
    ),
    "system/library.py": "def load():\n    import dynamorouter.system.system.system\n",
    "training/__init__.py": "",
    "training/config.py": (
        "from pydantic import BaseModel\n"
        "class Options(BaseModel):\n"
        "    pass\n"
        "class Plan(Options):\n"
        "    rank: int\n"
        "    alpha: float\n"
        "    epochs: int\n"
        "    seed: int\n"
        "    kind: ClassVar[str] = 'plan'\n"
    ),
    "training/loop.py": (
        "import torch\n"
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class Settings:\n"
        "    rank: int\n"
        "    alpha: float\n"
        "    epochs: int\n"
        "    seed: int\n"
        "    device: str\n"
        "class Rank:\n"
        "    rank: int\n"
        "    alpha: float\n"
        "    epochs: int\n"
        "    seed: int\n"
        "def step(weights):\n"
        "    return torch.optim.AdamW(weights)\n"
    ),
    "inference/__init__.py": "",
    "inference/engine.py": (
        "from dynamorouter.training.loop import step\n"
        "def apply(gate):\n"
        "    if isinstance(gate, RowGate):\n"
        "        return 1\n"
        "    return isinstance(gate, (SoftGate, str)) or isinstance(gate, str)\n"
    ),
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose package is ``SOURCES``, with one function of 61 lines and one file of 401."""
    sources = SOURCES | {"errors.py": "import torch\ndef long():\n" + "    pass\n" * 60 + "\n" * 339}
    for name, text in sources.items():
        path = tmp_path / "src" / "dynamorouter" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def figures(checkout: Path) -> dict[str, house.Figure]:
    return {figure.label: figure for figure in house.measure(checkout)}


def test_every_figure_is_what_a_hand_counts(checkout: Path) -> None:
    measured = figures(checkout)
    assert {label: figure.value for label, figure in measured.items()} == {
        "lines": 401 + sum(text.count("\n") for name, text in SOURCES.items() if name != "errors.py"),
        "files": 11,
        "functions": 5,
        "rooms": 3,
        "modules at the top": 2,
        "functions over 60 lines": 1,
        "files over 400 lines": 1,
        "lines of class System": 4,
        "floors": 5,
        "imports between modules": 4,
        "imports upward": 1,
        "circles of modules": 1,
        "circles of rooms": 0,
        "imports of training by inference": 1,
        "pairs of classes with 4 fields alike": 1,
        "isinstance of a gate": 2,
        "parameters begin, advance": 2,
        "AdamW made": 1,
        "vague names of variables": 2,
    }
    assert measured["imports upward"].places == ("inference.engine -> training.loop",)
    assert measured["circles of modules"].places == ("system.library - system.system",)
    assert measured["pairs of classes with 4 fields alike"].places == (
        "training.config.Plan and training.loop.Settings: 4 of 4",
    )


def test_no_modules_of_the_package_go_round_in_a_circle() -> None:
    checkout = Path(__file__).parents[2]
    assert house.circles_of(set(house.imports_of(house.modules_of(checkout)))) == []


def test_rooms_of_one_floor_do_not_import_each_other(checkout: Path) -> None:
    merging = checkout / "src/dynamorouter/merging/__init__.py"
    merging.parent.mkdir()
    merging.write_text("import dynamorouter.inference.engine\n", encoding="utf-8")
    assert "merging -> inference.engine" in figures(checkout)["imports upward"].places


def test_another_house_is_measured_against_its_own_contract(checkout: Path) -> None:
    layers = ["inference", "(gone) | hall", "training", "system", "registry", "errors"]
    contract = f"[[tool.importlinter.contracts]]\nlayers = {json.dumps(layers)}\n"
    (checkout / "pyproject.toml").write_text(contract, encoding="utf-8")
    hall = checkout / "src/dynamorouter/hall.py"
    hall.write_text("import dynamorouter.inference.engine\n", encoding="utf-8")
    measured = figures(checkout)
    assert measured["imports upward"].places == ("hall -> inference.engine",)
    assert measured["floors"].value == 6
    hall.rename(hall.with_name("attic.py"))
    with pytest.raises(SystemExit, match="attic stand on no floor"):
        house.measure(checkout)


def test_the_table_stands_two_checkouts_side_by_side(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    after = checkout / "after"
    shutil.copytree(checkout / "src", after / "src")
    (after / "src/dynamorouter/system/system.py").write_text("class System:\n    pass\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["house.py", str(checkout), str(after)])
    house.main()
    assert re.search(r"^lines of class System +4 +2$", capsys.readouterr().out, flags=re.MULTILINE)
    monkeypatch.setattr(sys, "argv", ["house.py", "--json", str(checkout)])
    house.main()
    assert json.loads(capsys.readouterr().out)[str(checkout)]["AdamW made"] == {
        "value": 1,
        "places": ["training.loop: 1"],
    }


def test_a_folder_without_the_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"holds no src/dynamorouter; give the root"):
        house.measure(tmp_path)
