"""The files that a contributor and the hosting site read: they parse, and they say what the project does."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import dynamorouter

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def loaded(name: str) -> Any:
    return yaml.safe_load(read(name))


def commands_of(target: str) -> set[str]:
    """The programs, with the subcommand where there is one, that a target of the Makefile runs from .venv."""
    body = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", read("Makefile"), flags=re.MULTILINE)
    assert body
    return set(re.findall(r"\$\(BIN\)/([\w-]+(?: [a-z]+)?)", body[1]))


def test_the_workflow_runs_what_ci_runs_on_the_oldest_python() -> None:
    jobs = loaded(".github/workflows/ci.yml")["jobs"]
    assert "bash .ci/run" in [step.get("run") for step in jobs["check"]["steps"]]
    for job in jobs.values():
        uses = {step["uses"].partition("@")[0]: step.get("with", {}) for step in job["steps"] if "uses" in step}
        assert "actions/checkout" in uses
        assert PROJECT["project"]["requires-python"] == f">={uses['actions/setup-python']['python-version']}"
        commands = [step["run"] for step in job["steps"] if "run" in step]
        assert all(re.fullmatch(r"bash \.ci/run|make [a-z]+", command) for command in commands)


def test_hooks_before_a_commit_are_those_of_make_check() -> None:
    local, *others = loaded(".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    assert {hook["language"] for hook in local["hooks"]} == {"system"}
    programs = {re.sub(r"^\.venv/bin/", "", hook["entry"]).split(" -")[0] for hook in local["hooks"]}
    assert programs == commands_of("check") - {"python"}, "all but the tests, which take longer than a commit should"
    assert all(re.fullmatch(r"v[\d.]+", other["rev"]) for other in others)


@pytest.mark.parametrize("form", ["bug", "feature"])
def test_issue_forms_ask_for_something(form: str) -> None:
    content = loaded(f".github/ISSUE_TEMPLATE/{form}.yml")
    assert content.keys() <= {"name", "description", "title", "labels", "body"}
    assert content["name"] and content["description"]
    for field in content["body"]:
        assert field["type"] in {"textarea", "input", "dropdown", "checkboxes"}
        assert field["attributes"]["label"]
        assert field["type"] not in {"dropdown", "checkboxes"} or field["attributes"]["options"]
    ids = [field["id"] for field in content["body"]]
    assert len(set(ids)) == len(ids)
    assert any(field.get("validations", {}).get("required") for field in content["body"])


def test_the_citation_names_this_version() -> None:
    citation = loaded("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"] and citation["title"] == "DynamoRouter"
    assert citation["authors"] == [{"name": "The DynamoRouter developers"}]
    assert citation["version"] == dynamorouter.__version__
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["abstract"] == PROJECT["project"]["description"]


def test_git_keeps_weights_as_bytes_and_marks_what_commands_wrote(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    weights = "src/dynamorouter/models/mini/model.safetensors"
    card, result = "src/dynamorouter/models/mini/card.json", "benchmarks/results/routing.json"
    command = ["git", "-C", str(tmp_path), "check-attr", "text", "diff", "linguist-generated", "--"]
    printed = subprocess.run([*command, weights, card, result, "src/a.py"], capture_output=True, text=True, check=True)
    attributes = dict(line.rsplit(": ", 1) for line in printed.stdout.splitlines())
    assert attributes[f"{weights}: text"] == attributes[f"{weights}: diff"] == "unset"
    assert attributes[f"{card}: text"] == "unset"
    assert attributes[f"{result}: linguist-generated"] == "set"
    assert attributes["src/a.py: text"] == "auto"


def test_editors_break_lines_where_ruff_does() -> None:
    config = configparser.ConfigParser()
    config.read_string("[top]\n" + read(".editorconfig"))
    assert config["*.py"]["max_line_length"] == str(PROJECT["tool"]["ruff"]["line-length"])
    assert config["Makefile"]["indent_style"] == "tab"


def test_every_extra_for_contributors_is_pinned_and_the_pins_are_sorted() -> None:
    pins = [line.partition("==")[0].lower() for line in read("constraints.txt").splitlines()[1:]]
    assert pins == sorted(set(pins))
    wanted = [line for extra in ("dev", "docs") for line in PROJECT["project"]["optional-dependencies"][extra]]
    names = {re.split(r"[\[<>=]", line)[0].lower().replace("_", "-") for line in wanted}
    assert names <= {pin.replace("_", "-") for pin in pins}


def test_the_documentation_asks_no_other_host_and_leaves_no_page_out() -> None:
    settings = loaded("mkdocs.yml")
    assert settings["theme"]["font"] is False
    assert not {"extra_javascript", "extra_css"} & settings.keys()
    assert "analytics" not in settings["extra"]
    pages = re.findall(r"[\w/-]+\.md", str(settings["nav"]))
    assert sorted(pages) == sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))


def test_the_glossary_is_sorted_and_says_each_term_once() -> None:
    terms = re.findall(r"^\| ([\w-]+(?: \w+)?) \|", read("docs/glossary.md"), flags=re.MULTILINE)[1:]
    assert len(terms) > 30
    assert [term.lower() for term in terms] == sorted({term.lower() for term in terms})


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", ".github/pull_request_template.md"])
def test_files_that_a_page_names_exist(page: str) -> None:
    named = re.findall(r"`((?:[\w.]+/)*[\w]+\.(?:md|toml|txt|yml|cff))`", read(page))
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
