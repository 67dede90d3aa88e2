"""What commit 557703c saved, before the modules moved: it loads, answers as it did then, and goes on from there.

The files are in ``fixtures/before_house``; its README says how they were written. Nothing there is ever written anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

from dynamorouter import System
from dynamorouter.model.lora.peft import load_adapter
from support.tinyrun import call

FIXTURE = next(
    fixture for parent in Path(__file__).parents if (fixture := parent / "fixtures" / "before_house").is_dir()
)
PLACEHOLDER = "__FIXTURE__"
EXPECTED: dict[str, Any] = json.loads((FIXTURE / "expected.json").read_text(encoding="utf-8"))
PLACE_AND_TIME = ("cost", "versions", "config_hash")
"""What a report says of the machine, the code and the place of the run."""
SHIFT = ("ask/head.safetensors", "out.bias")
"""Shifts the scores of all positions alike, which changes no answer: its gradient is rounding, and its value any."""


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Return a copy of the fixture that a test may change, with its own place in it."""
    folder = Path(shutil.copytree(FIXTURE, tmp_path / "fixture"))
    for path in (file for file in folder.rglob("*") if file.suffix in (".json", ".yaml")):
        text = path.read_text(encoding="utf-8")
        if PLACEHOLDER in text:
            path.write_text(text.replace(PLACEHOLDER, str(folder)), encoding="utf-8")
    return folder


def words(saved: Path) -> list[str]:
    """Return the command line's words that the run was started with."""
    return ["tiny", f"search_path=[{saved / 'conf'}]", f"data.root={saved / 'rows'}"]


def succeed(*line: str | Path) -> str:
    """Run a command line that must end well, and return what it printed."""
    result = call(*line)
    assert result.exit_code == 0, f"{result.output}\n{result.stderr}"
    return str(result.stdout)


def assert_same(actual: Any, expected: Any, *, tolerance: float = 1e-5, where: str = "") -> None:
    """Compare JSON values: numbers within a tolerance, everything else exactly; further keys may be new."""
    if isinstance(expected, dict):
        assert isinstance(actual, dict) and expected.keys() <= actual.keys(), f"{where}: {actual} lacks {expected}"
        for key, value in expected.items():
            assert_same(actual[key], value, tolerance=tolerance, where=f"{where}.{key}")
    elif isinstance(expected, list):
        assert isinstance(actual, list) and len(actual) == len(expected), f"{where}: {actual} instead of {expected}"
        for i, (mine, old) in enumerate(zip(actual, expected, strict=True)):
            assert_same(mine, old, tolerance=tolerance, where=f"{where}[{i}]")
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, abs=tolerance), where
    else:
        assert actual == expected, f"{where}: {actual!r} instead of {expected!r}"


def assert_same_tensors(actual: Path, expected: Path) -> None:
    """Compare the tensors of every safetensors file below two folders.

    Another processor rounds otherwise, and Adam makes a step of a gradient that is nothing but rounding. So it is the
    mean difference that must be small: a tenth and less of what the shortest phase moves a tensor by.
    """
    files = sorted(str(path.relative_to(expected)) for path in expected.rglob("*.safetensors"))
    assert files and files == sorted(str(path.relative_to(actual)) for path in actual.rglob("*.safetensors"))
    for name in files:
        mine, old = load_file(actual / name), load_file(expected / name)
        assert mine.keys() == old.keys(), name
        for key, tensor in old.items():
            if name.endswith(SHIFT[0]) and key == SHIFT[1]:
                continue
            assert mine[key].shape == tensor.shape, f"{name}: {key}"
            size = float(tensor.double().abs().mean())
            difference = float((mine[key].double() - tensor.double()).abs().mean())
            assert difference <= 1e-4 * (1 + size), f"{name}: {key} differs by {difference}, of {size}, in the mean"


def predicted(system: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what a saved system answers to rows now, as JSON values."""
    tasks = [None if len(row["route"]) > 1 else row["task"] for row in rows]
    predictions = System.load(system, device="cpu").predict(
        [row["text"] for row in rows], [row["pair"] for row in rows], tasks
    )
    return [prediction.to_json() for prediction in predictions]


def assert_answers(system: Path, rows: list[dict[str, Any]], *, tolerance: float = 1e-5) -> None:
    """Compare a saved system's answers with those of old."""
    assert_same(predicted(system, rows), rows, tolerance=tolerance)


def test_no_file_was_written_anew() -> None:
    now = {
        str(path.relative_to(FIXTURE)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in FIXTURE.rglob("*")
        if path.is_file() and path.parent != FIXTURE and "__pycache__" not in path.parts
    }
    assert now == EXPECTED["sha256"]
    assert EXPECTED["commit"].startswith("557703c")


@pytest.mark.parametrize(("system", "answers"), [("run/system", "run"), ("writer", "writer"), ("fused", "fused")])
def test_a_system_answers_as_it_did(saved: Path, system: str, answers: str) -> None:
    assert_answers(saved / system, EXPECTED[answers])


@pytest.mark.parametrize(("system", "answers"), [("run/system", "run"), ("writer", "writer"), ("fused", "fused")])
def test_a_system_that_is_saved_again_answers_as_it_did(saved: Path, system: str, answers: str) -> None:
    System.load(saved / system, device="cpu").save(saved / "again")
    assert_answers(saved / "again", EXPECTED[answers])


@pytest.mark.parametrize("kind", EXPECTED["routers"])
def test_a_router_routes_as_it_did(saved: Path, kind: str) -> None:
    folder = saved / "run" / "phases" / "experts"  # the experts that it was fitted beside
    manifest = json.loads((folder / "system.json").read_text())
    (folder / "system.json").write_text(json.dumps({**manifest, "classes": manifest["experts"]}))
    shutil.copytree(saved / "routers" / kind, folder / "router")
    system = System.load(folder, device="cpu")
    rows = EXPECTED["run"]
    routes = [system.route([row["text"]], [row["pair"]])[0] for row in rows]
    assert_same(routes, EXPECTED["routers"][kind])


@pytest.mark.parametrize(
    ("system", "name", "loader"),
    [
        ("run/system", "mood", AutoModel),
        ("run/system", "names", AutoModel),
        ("run/system", "ask", AutoModel),
        ("fused", "ask", AutoModel),
        ("writer", "say", AutoModelForCausalLM),
    ],
)
def test_an_adapter_loads_here_and_by_peft(saved: Path, system: str, name: str, loader: Any) -> None:
    folder = saved / system / "experts" / name
    loaded = System.load(saved / system, device="cpu")
    expert = loaded.experts[loaded.index(name)]
    base = loaded.bases[expert.base]
    adapter = load_adapter(folder, base)
    assert adapter.factors.keys() == expert.factors.keys() and adapter.lora.rank == 2
    peft = PeftModel.from_pretrained(loader.from_pretrained(base.spec.path), folder)
    values = {key: value for key, value in peft.state_dict().items() if ".lora_" in key}
    assert len(values) == 2 * len(adapter.factors)
    for layer, factors in adapter.factors.items():
        for side, tensor in (("A", factors.a), ("B", factors.b)):
            (held,) = (value for key, value in values.items() if f".{layer}.lora_{side}.default" in key)
            assert torch.equal(tensor, held), (layer, side)
        assert torch.equal(factors.a, expert.factors[layer].a) and torch.equal(factors.b, expert.factors[layer].b)
        assert factors.scaling == 4.0 and peft.get_submodule(f"base_model.model.{base.prefix}{layer}").scaling == {
            "default": 4.0
        }


def test_the_commands_read_a_system(saved: Path, tmp_path: Path) -> None:
    system = saved / "run" / "system"
    for row in EXPECTED["run"]:
        pair = [] if row["pair"] is None else ["--pair", row["pair"]]
        task = [] if len(row["route"]) > 1 else ["--task", row["task"]]
        assert_same(json.loads(succeed("predict", system, row["text"], *pair, *task, "--json")), row)
    experts = [{key: row[key] for key in row if key != "bytes"} for row in EXPECTED["experts"]]  # with the place's name
    assert_same(json.loads(succeed("expert", "list", system, "--json")), experts)
    succeed("score", system, "--data", saved / "rows", "--split", "test", "--out", tmp_path / "scores.json")
    assert_same(json.loads((tmp_path / "scores.json").read_text()), EXPECTED["scores"])


@pytest.mark.e2e
def test_an_expert_is_removed_and_added_again(saved: Path) -> None:
    system, adapter = saved / "run" / "system", saved / "run" / "phases" / "experts" / "experts" / "mood"
    before = load_file(adapter / "adapter_model.safetensors")
    succeed("expert", "remove", system, "mood")
    assert_answers(system, EXPECTED["without mood"])
    task, rows = saved / "conf" / "task" / "mood.yaml", saved / "rows"
    succeed("expert", "add", system, adapter, "--task", task, "--data", rows)
    added = load_file(system / "experts" / "mood" / "adapter_model.safetensors")
    assert added.keys() == before.keys() and all(torch.equal(added[key], before[key]) for key in before)
    names = [row["name"] for row in json.loads(succeed("expert", "list", system, "--json"))]
    assert names == ["names", "ask", "mood"]
    (row,) = predicted(system, [row for row in EXPECTED["run"] if row["route"] == {"mood": 1.0}])
    assert row["expert"] == "mood" and row["answer"] in ("bad", "good")


@pytest.mark.e2e
@pytest.mark.parametrize(
    "repeat",
    [
        pytest.param(False, id="resume alone"),
        pytest.param(True, id="resume with the words of the first command"),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_system(saved: Path, repeat: bool) -> None:
    out = saved / "interrupted"
    assert not (out / "phases" / "router").exists() and not (out / "report.json").exists()
    succeed("run", *(words(saved) if repeat else []), "--out", out, "--resume")
    assert_same_tensors(out / "system", saved / "run" / "system")
    assert_answers(out / "system", EXPECTED["run"], tolerance=1e-4)
    report, old = (json.loads((folder / "report.json").read_text()) for folder in (out, saved / "run"))
    assert report.keys() >= old.keys()
    assert_same(report, {key: value for key, value in old.items() if key not in PLACE_AND_TIME}, tolerance=1e-3)


def test_a_finished_run_is_read_and_left_alone(saved: Path) -> None:
    out = saved / "run"
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    printed = succeed("run", "--out", out, "--resume")
    assert all(name in printed for name in ("mood", "names", "ask"))
    for command in (["prepare", "--resume"], ["fit", "experts"], ["fit", "router"], ["fit", "joint"]):
        succeed(*command, "--out", out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "phase", ["router", *(pytest.param(phase, marks=pytest.mark.e2e) for phase in ("experts", "joint"))]
)
def test_a_phase_is_done_again_on_rows_of_old(saved: Path, phase: str) -> None:
    out = saved / "run"
    old = Path(shutil.copytree(out / "phases" / phase, saved / "old"))
    shutil.rmtree(out / "phases" / phase)
    succeed("fit", phase, "--out", out)
    assert_same_tensors(out / "phases" / phase, old)


def test_a_report_is_written_again_from_rows_of_old(saved: Path) -> None:
    path = saved / "run" / "report.json"
    old = json.loads(path.read_text())
    path.unlink()
    succeed("run", "--out", saved / "run", "--resume")
    assert_same(json.loads(path.read_text()), {key: value for key, value in old.items() if key not in PLACE_AND_TIME})
