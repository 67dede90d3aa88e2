"""Options of generation on the command line: one for each setting, made of the setting itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_origin

import pytest
import typer
from typer.testing import CliRunner

from dynamorouter.cli.predict import GenerationCommand
from dynamorouter.tasks.task import Generation
from support.tinyrun import call

VALUES = {"int": "3", "float": "0.5"}


def parsed(*words: str) -> dict[str, object]:
    """Return what a command is given of generation."""
    app = typer.Typer(add_completion=False)

    @app.command(cls=GenerationCommand)
    def show(context: typer.Context, text: str) -> None:
        print(json.dumps(context.obj))

    result = CliRunner().invoke(app, ["text", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    values: dict[str, object] = json.loads(result.output)
    return values


@pytest.mark.parametrize("name", [*Generation.model_fields, *Generation.aliases()])
def test_every_setting_can_be_given_by_each_of_its_names(name: str) -> None:
    own = Generation.aliases().get(name, name)
    setting = Generation.model_fields[own]
    option = f"--{name.replace('_', '-')}"
    if get_origin(setting.annotation) is tuple:
        assert parsed(option, "a", option, "b") == {own: ["a", "b"]}
    else:
        assert setting.annotation is not None
        assert parsed(option, VALUES[setting.annotation.__name__]) == {
            own: setting.annotation(3 if setting.annotation is int else 0.5)
        }


def test_what_is_not_given_is_left_to_the_tasks() -> None:
    assert parsed() == {}


def test_help_describes_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    text = call("predict", "--help").stdout
    for name, setting in Generation.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text and str(setting.description).split()[0] in text


def test_the_page_describes_every_setting_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "generation.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]+) \|", page.split("| option |")[1].split("\n\n")[0], re.MULTILINE
    )
    pairs = [
        (name.strip("` "), value)
        for names, values in rows
        for name, value in zip(names.split(","), values.split(","), strict=True)
    ]
    defaults = {
        name: "none" if value.default == () else f"{value.default:g}" for name, value in Generation.model_fields.items()
    }
    assert {name: value.strip() for name, value in pairs} == defaults
