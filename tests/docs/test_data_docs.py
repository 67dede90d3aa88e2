"""The page on one's own rows: its file, its task and its Python do what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dynamorouter.config.tasks import find_task
from dynamorouter.data.formats import suffixes
from dynamorouter.data.native import read_split
from dynamorouter.data.sources import in_task_columns
from dynamorouter.tasks.task import Task

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """Return the page's only block of a language."""
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    return str(text)


def test_the_file_and_the_task_of_the_page_are_read(tmp_path: Path) -> None:
    (tmp_path / "reviews").mkdir()
    (tmp_path / "reviews" / "train.csv").write_text(block("csv"))
    (tmp_path / "reviews.yaml").write_text(block("yaml"))
    task = find_task(str(tmp_path / "reviews.yaml"))
    records = read_split(task, tmp_path, "train")
    assert [(record.text, record.target) for record in records] == [
        ("Warm, funny, and far too short.", "5"),
        ("Dull from the first scene to the last.", "1"),
    ]


def test_the_python_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block("python"), "docs/data.md", "exec"), {})
    assert capsys.readouterr().out == "[('Warm, funny, and far too short.', '5'), ('Dull.', '1')]\n"


def test_the_page_names_every_ending_and_every_key_that_a_task_needs() -> None:
    tags = find_task("conll2003")
    endings = [ending for ending in suffixes(tags) if not ending.endswith(".gz")]
    assert re.findall(r"`(\.\w+)`", PAGE.split("| ending |")[1].split("\n\n")[0]) == endings
    keys = re.findall(
        r"`(\w+)`", "".join(re.findall(r"^\| (.*?) \|", PAGE.split("## Keys of a task")[1], re.MULTILINE))
    )
    assert set(keys) >= {name for name, field in Task.model_fields.items() if field.is_required()} - {"name"}


def test_labels_are_spelled_as_the_page_says() -> None:
    reviews = find_task("sst2").model_copy(update={"labels": ("0", "1")})
    options = {"label_map": {"neg": "0", "unsure": None}}
    named = [in_task_columns(reviews, {"text": "a", "label": label}, options)["label"] for label in ("neg", "unsure")]
    assert named == ["0", None]
