"""What ``predict`` and ``score`` print, for people and for programs."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamorouter.cli import predict as cli_predict
from dynamorouter.system.predict_file import predict_lines
from dynamorouter.system.system import System
from support.tinyrun import call, lines, refused, write_lines

TEXT, PAIR = "where was anna ?", "the film anna was in paris . the film"


@pytest.fixture
def system(finished: Path) -> Path:
    """Return a finished run's system, which no test may change."""
    return finished / "system"


@pytest.mark.parametrize("task", ["mood", "names"])
def test_a_text_gets_task_confidence_and_answer(system: Path, task: str) -> None:
    text = "the film anna said in paris" if task == "names" else "the film great joy"
    done = call("predict", system, text, "--task", task)
    assert done.exit_code == 0
    name, confidence, *answer = done.stdout.split()
    assert name == task and float(confidence) == 1.0 and answer
    found = json.loads(call("predict", system, text, "--task", task, "--json").stdout)
    if task == "mood":
        assert answer == [found["answer"]]
    elif found["entities"]:
        assert done.stdout.rstrip().endswith(", ".join(f"{e['text']} ({e['type']})" for e in found["entities"]))
    else:
        assert done.stdout.rstrip().endswith("(no entities)")


def test_json_holds_everything(system: Path) -> None:
    found = json.loads(call("predict", system, TEXT, "--pair", PAIR, "--json").stdout)
    assert {"text", "pair", "task", "route", "confidence", "answer"} <= set(found)
    assert (found["text"], found["pair"]) == (TEXT, PAIR)
    assert set(found["route"]) == {"mood", "names", "ask"}
    assert sum(found["route"].values()) == pytest.approx(1, abs=1e-5)
    assert found["confidence"] == max(found["route"].values()) == found["route"][found["task"]]
    loaded = System.load(system)
    assert found == json.loads(json.dumps(loaded.predict([TEXT], [PAIR])[0].to_json()))


def test_a_routed_text_is_answered_by_its_expert(system: Path) -> None:
    plain = call("predict", system, TEXT, "--pair", PAIR).stdout.split()
    found = json.loads(call("predict", system, TEXT, "--pair", PAIR, "--json").stdout)
    assert plain[0] == found["task"] == "ask"
    assert found["answer"] in PAIR


def some_rows(count: int) -> list[dict[str, object]]:
    return [{"id": f"r{i}", "question": TEXT, "context": f"{PAIR}{' bank' * i}"} for i in range(count)]


def test_a_file_is_answered_in_order_as_its_rows_alone(system: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", [*some_rows(3), {"text": "the film was dull", "extra": 1}])
    done = call("predict", system, "--file", path, "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["line"], row.get("id")) for row in found] == [(1, "r0"), (2, "r1"), (3, "r2"), (4, None)]
    alone = json.loads(call("predict", system, "the film was dull", "--json").stdout)
    assert found[3]["answer"] == alone["answer"]
    assert found[3]["route"] == pytest.approx(alone["route"], abs=1e-4)
    plain = call("predict", system, "--file", path).stdout.splitlines()
    assert len(plain) == 4 and all(" | " in line for line in plain) and plain[3].endswith("| the film was dull")
    same = call("predict", system, "--file", path, "--json", "--task", "mood").stdout.splitlines()
    assert {json.loads(line)["task"] for line in same} == {"mood"}


def test_answers_come_before_the_file_ends(system: Path, tmp_path: Path) -> None:
    """The first answers are there while the writer of a pipe still holds back the rest."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    go_on = threading.Event()

    def write() -> None:
        rows = [json.dumps(row) for row in some_rows(40)]
        with pipe.open("w") as stream:
            stream.write("\n".join(rows) + "\n")
            stream.flush()
            go_on.wait(30)
            stream.write(json.dumps({"text": "the film was dull"}) + "\n")

    writer = threading.Thread(target=write)
    writer.start()
    answers: Iterator[object] = predict_lines(System.load(system), pipe, chunk=8)
    first = [next(answers) for _ in range(8)]
    assert len(first) == 8 and not go_on.is_set()
    go_on.set()
    assert len(list(answers)) == 33
    writer.join(30)


def test_answers_go_to_a_file_whole_or_not_at_all(system: Path, tmp_path: Path) -> None:
    path, out = write_lines(tmp_path / "in.jsonl", some_rows(3)), tmp_path / "deep" / "out.jsonl"
    done = call("predict", system, "--file", path, "--out", out)
    assert done.exit_code == 0 and done.stdout == ""
    assert [row["id"] for row in lines(out)] == ["r0", "r1", "r2"]
    old = out.read_bytes()
    write_lines(path, [*some_rows(3), "{"])
    refused(call("predict", system, "--file", path, "--out", out), "line 4")
    assert out.read_bytes() == old and [item.name for item in out.parent.iterdir()] == ["out.jsonl"]
    done = call("predict", system, TEXT, "--pair", PAIR, "--out", out)
    assert done.exit_code == 0 and lines(out)[0]["task"] == "ask"


def test_a_pair_for_a_file_is_refused(system: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", some_rows(1))
    refused(call("predict", system, "--file", path, "--pair", "x"), "--pair goes with a text")


def test_a_long_row_is_shown_short_and_on_one_line() -> None:
    shown = cli_predict._start("a\nb\r\tc " * 40, "pair")
    assert len(shown) == 70 and shown.endswith("...") and "\n" not in shown and "\r" not in shown


def test_score_prints_a_table(system: Path, home: Path, tmp_path: Path) -> None:
    out, rows = tmp_path / "scores.json", Path(shutil.copytree(home / "rows", tmp_path / "rows"))
    with (rows / "mood" / "test.jsonl").open("a") as more:
        more.write('{"text": "the film was dull", "label": "dull"}\n')
    done = call("score", system, "--data", rows, "--split", "test", "--out", out, "--skip-bad")
    assert done.exit_code == 0 and "1 bad rows skipped" in done.stderr
    scores = json.loads(out.read_text())
    for name, row in scores["tasks"].items():
        assert name in done.stdout and row["metric"] in done.stdout
        assert f"{row['oracle']:.4f}" in done.stdout and f"{row['routed']:.4f}" in done.stdout
    assert "router: accuracy" in done.stdout
