"""Files that ``predict`` reads and writes: formats of training data, a task's own columns, standard input, tables."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dynamorouter.cli import main as cli
from support.tinyrun import call, lines, refused, write_lines

TEXT, PAIR = "where was anna ?", "the film anna was in paris . the film"
ROWS = [("r0", "the film great joy", ""), ("r1", TEXT, PAIR), ("r2", 'said "bad", never', "")]
JSON_ROWS = [{"id": key, "text": text, "pair": pair or None} for key, text, pair in ROWS]


@pytest.fixture
def system(finished: Path) -> Path:
    """Return a finished run's system, which no test may change."""
    return finished / "system"


@pytest.fixture
def answers(system: Path, tmp_path: Path) -> list[dict[str, object]]:
    """Return what the rows are answered as JSON lines."""
    path = write_lines(tmp_path / "plain.jsonl", JSON_ROWS)
    return [json.loads(line) for line in call("predict", system, "--file", path, "--json").stdout.splitlines()]


def table(path: Path, delimiter: str) -> Path:
    """Write the rows as a table."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerow(["id", "text", "pair"])
        rows.writerows(ROWS)
    return path


@pytest.mark.parametrize("name", ["in.csv", "in.tsv", "in.csv.gz", "in.json", "in.jsonl.gz", "rows"])
def test_every_format_is_answered_alike(
    system: Path, answers: list[dict[str, object]], tmp_path: Path, name: str
) -> None:
    path, plain = tmp_path / name, tmp_path / name.removesuffix(".gz")
    if ".csv" in name or ".tsv" in name:
        table(plain, "," if ".csv" in name else "\t")
    elif name == "in.json":
        plain.write_text(json.dumps(JSON_ROWS))
    else:
        write_lines(plain, JSON_ROWS)
    if path != plain:
        path.write_bytes(gzip.compress(plain.read_bytes()))
    done = call("predict", system, "--file", path, "--json")
    assert done.exit_code == 0, done.output
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [{**row, "line": 0} for row in found] == [{**row, "line": 0} for row in answers]


def test_rows_have_a_tasks_own_columns(system: Path, tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "in.jsonl",
        [
            {"question": TEXT, "context": PAIR, "answers": {"text": ["paris"], "answer_start": [17]}},
            {"tokens": ["the", "film", "anna", "said", "in", "paris"], "tags": ["O"] * 6},
            {"text": "the film great joy", "label": "good"},
        ],
    )
    found = [json.loads(line) for line in call("predict", system, "--file", path, "--json").stdout.splitlines()]
    assert [(row["text"], row["pair"]) for row in found] == [
        (TEXT, PAIR),
        ("the film anna said in paris", None),
        ("the film great joy", None),
    ]
    named = write_lines(tmp_path / "names.jsonl", [{"tokens": "the film anna"}, {"tokens": 3}])
    refused(call("predict", system, "--file", named, "--task", "names", "--json"), "names.jsonl, line 2")
    missing = write_lines(tmp_path / "missing.jsonl", [{"txt": "the film"}])
    refused(call("predict", system, "--file", missing), "has no 'text' (did you mean 'text'?); its keys: txt")


def test_conversations_and_columns_of_words_are_questions_too(system: Path, tmp_path: Path) -> None:
    turns = [{"from": "system", "value": "be short"}, {"from": "human", "value": "the film"}]
    chat = write_lines(tmp_path / "chat.jsonl", [{"id": "c1", "conversations": turns}, {"text": "the film"}])
    words = tmp_path / "words.conll"
    words.write_text("the O\nfilm O\n\nanna B-PER\n\n")
    texts = []
    for path in (chat, words):
        done = call("predict", system, "--file", path, "--json")
        assert done.exit_code == 0, done.output
        texts.append([json.loads(line)["text"] for line in done.stdout.splitlines()])
    assert texts == [["be short\n\nthe film", "the film"], ["the film", "anna"]]


@pytest.mark.parametrize("form", ["csv", "json"])
def test_standard_input_is_read(system: Path, answers: list[dict[str, object]], tmp_path: Path, form: str) -> None:
    text = table(tmp_path / "in.csv", ",").read_text() if form == "csv" else json.dumps(JSON_ROWS)
    words = ["predict", str(system), "--file", "-", "--format", form, "--json"]
    done = CliRunner().invoke(cli.app, words, input=text)
    assert done.exit_code == 0, done.output
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["answer"] for row in found] == [row["answer"] for row in answers]


def test_json_lines_come_from_standard_input(system: Path, answers: list[dict[str, object]], tmp_path: Path) -> None:
    kept = os.dup(0)
    with write_lines(tmp_path / "in", JSON_ROWS).open() as file:
        os.dup2(file.fileno(), 0)
        try:
            done = call("predict", system, "--file", "-", "--json")
        finally:
            os.dup2(kept, 0)
            os.close(kept)
    assert [json.loads(line) for line in done.stdout.splitlines()] == answers
    refused(call("predict", system, "--file", "-", "--format", "xml"), "--format is 'xml'", "jsonl, json, csv, tsv")
    refused(call("predict", system, "--file", tmp_path / "in", "--format", "csv"), "it goes with --file -")


@pytest.mark.parametrize("name", ["out.csv", "out.tsv", "out.csv.gz", "out.jsonl.gz", "out.jsonl"])
def test_answers_are_written_as_the_name_says(
    system: Path, answers: list[dict[str, object]], tmp_path: Path, name: str
) -> None:
    path, out = table(tmp_path / "in.csv", ","), tmp_path / name
    done = call("predict", system, "--file", path, "--out", out)
    assert done.exit_code == 0 and done.stdout == "", done.output
    text = gzip.decompress(out.read_bytes()).decode() if name.endswith(".gz") else out.read_text()
    if "jsonl" in name:
        found = [json.loads(line) for line in text.splitlines()]
        assert [row["answer"] for row in found] == [row["answer"] for row in answers]
        return
    rows = list(csv.DictReader(text.splitlines(), delimiter="\t" if ".tsv" in name else ","))
    for row, answer in zip(rows, answers, strict=True):
        assert (row["id"], row["text"], row["task"]) == (answer["id"], answer["text"], answer["task"])
        assert json.loads(row["route"]) == answer["route"] and row["pair"] == (answer["pair"] or "")
        value = answer["answer"]
        assert row["answer"] == value if isinstance(value, str) else json.loads(row["answer"]) == value
    plain = lines(call_out(system, tmp_path / "one.jsonl"))
    assert plain[0]["text"] == TEXT and "line" not in plain[0]


def call_out(system: Path, out: Path) -> Path:
    """Write the answer to one text."""
    assert call("predict", system, TEXT, "--pair", PAIR, "--out", out).exit_code == 0
    return out
