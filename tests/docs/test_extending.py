"""The plugin of every page under docs/extending is installed as it stands, listed, used, and keeps its contract."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from dynamorouter.registry import REGISTRIES
from support.plugins import install

PAGES = sorted((Path(__file__).parents[2] / "docs" / "extending").glob("*.md"))
SCRIPT = """
import importlib, json, sys, traceback
from typer.testing import CliRunner
from dynamorouter.cli.main import app


def call(words):
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, (words, result.output, result.exception)
    return result.output

outcomes = {}
for page, commands in json.loads(sys.argv[1]).items():
    try:
        printed = "".join(map(call, commands))
        tests = importlib.import_module(f"test_{page}")
        suites = [suite for suite in vars(tests).values() if getattr(suite, "__module__", "") == tests.__name__]
        outcomes[page] = {"printed": printed, "kept": [law for suite in suites for law in suite.check()]}
    except BaseException:
        outcomes[page] = {"error": traceback.format_exc()}
states = {row["name"]: row["state"] for row in json.loads(call(["list", "plugins", "--json"]))}
print(json.dumps({"outcomes": outcomes, "states": states}))
"""


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def entry_points(page: Path) -> dict[str, dict[str, str]]:
    """Return what the page's project brings, by group without ``dynamorouter.``."""
    groups = tomllib.loads(blocks(page, "toml")[0])["project"]["entry-points"]
    return {group.removeprefix("dynamorouter."): targets for group, targets in groups.items()}


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Install the plugins of all pages, and in one process of their own give their commands and run their tests."""
    folder = tmp_path_factory.mktemp("installed")
    commands = {}
    for page in PAGES:
        project = tomllib.loads(blocks(page, "toml")[0])["project"]
        module, test = blocks(page, "python")
        modules = {project["name"].replace("-", "_"): module, f"test_{page.stem}": test}
        install(folder, project["name"], version=project["version"], modules=modules, points=entry_points(page))
        lines = blocks(page, "console")[0].strip().splitlines()
        commands[page.stem] = [shlex.split(line.removeprefix("$ dynamorouter ")) for line in lines]
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "300"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_there_is_a_page_for_every_kind() -> None:
    kinds = {group.removesuffix("s") for group in REGISTRIES} - {"kind", "pooling"}  # these two go with another
    assert {page.stem for page in PAGES} == kinds


@pytest.mark.e2e
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_plugin_of_a_page_works_as_it_stands(used: dict[str, Any], page: Path) -> None:
    outcome = used["outcomes"][page.stem]
    assert "error" not in outcome, outcome.get("error")
    for targets in entry_points(page).values():
        assert all(used["states"][name] == "ok" and name in outcome["printed"] for name in targets)
    assert "test_is_what_the_registry_takes" in outcome["kept"]
    assert len([line for line in blocks(page, "python")[0].splitlines() if line.strip()]) <= 50
