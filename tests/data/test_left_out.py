"""Rows that cannot be learned from or scored are named before training, and what was left out is counted and said."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from dynamorouter.data.config import FilterConfig, RowsConfig
from dynamorouter.data.prepare import PreparedData, PrepareOptions, prepare
from dynamorouter.errors import DataError
from dynamorouter.tasks.task import Columns, Task

SMALL = PrepareOptions(train_rows=40, router_rows=20, joint_rows=10, select_rows=10, calibrate_rows=10, report_rows=20)
MOOD = Task(
    name="mood",
    head="classification",
    columns=Columns(text="text", target="label"),
    labels=("no", "yes"),
    sources={"local": {}},
)


def write(root: Path, task: str = "mood", *, train: list[dict[str, Any]]) -> None:
    (root / task).mkdir(parents=True)
    (root / task / "train.jsonl").write_text("\n".join(map(json.dumps, train)), encoding="utf-8")


def run(tmp_path: Path, task: Task = MOOD, *, options: PrepareOptions = SMALL) -> PreparedData:
    source_options = {"root": str(tmp_path / "raw")}
    return prepare([task], tmp_path / "out", source="local", source_options=source_options, options=options)


def test_too_few_rows_are_explained_by_what_was_left_out(tmp_path: Path) -> None:
    same = [{"text": "the same", "label": "no"}] * 20 + [{"text": "the same", "label": "yes"}] * 5
    write(tmp_path / "raw", train=[*same, {"text": "another", "label": "yes"}])
    with pytest.raises(
        DataError,
        match=r"too few rows for validation, .*\(train: 26 rows read; 2 kept; left out: 19 duplicate, 5 duplicate with "
        r"another target\); give more rows",
    ):
        run(tmp_path)


@pytest.mark.parametrize(("label", "said"), [("no", "'no', of no, yes"), ("yes", "'yes', of no, yes")])
def test_one_class_alone_is_nothing_to_learn_from(tmp_path: Path, label: str, said: str) -> None:
    write(tmp_path / "raw", train=[{"text": f"a {i}", "label": label} for i in range(60)])
    with pytest.raises(DataError, match=rf"split 'train': all 60 rows have the one label {said}; give rows of another"):
        run(tmp_path)


def test_tags_that_mark_nothing_are_nothing_to_learn_from(tmp_path: Path) -> None:
    names = Task(
        name="names",
        head="tags",
        columns=Columns(text="tokens", target="tags"),
        labels=("O", "B-X"),
        metrics=("entity_f1",),
        sources={"local": {}},
    )
    write(tmp_path / "raw", "names", train=[{"tokens": ["a", str(i)], "tags": ["O", "O"]} for i in range(60)])
    with pytest.raises(DataError, match="all 60 rows have the one label 'O', of B-X, O"):
        run(tmp_path, names)


@pytest.mark.parametrize(
    ("metric", "good", "bad", "said"),
    [
        ("final_number", {"answer": "#### 4"}, {"answer": "none"}, "finds no number in the target 'none'"),
        ("pass_at_1", {"tests": ["assert f() == 1"]}, {"tests": []}, r"needs tests in the target.*columns\.extra"),
        ("pass_at_1", {"tests": ["assert f() == 1"]}, {"tests": [" "]}, "needs tests in the target"),
        ("pass_at_1", {"tests": ["assert f() == 1"]}, {"tests": ["assert f( =="]}, "cannot run 'assert f"),
    ],
)
def test_rows_that_can_never_be_scored_are_found_before_training(
    tmp_path: Path, metric: str, good: dict[str, Any], bad: dict[str, Any], said: str
) -> None:
    task = Task(
        name="write",
        head="causal_lm",
        columns=Columns(text="text", target="answer", extra={"tests": "tests"} if "tests" in good else {}),
        metrics=(metric,),
        sources={"local": {}},
    )
    lines = [{"text": f"a {i}", "answer": "x = 1", **(bad if i % 3 == 0 else good)} for i in range(60)]
    write(tmp_path / "raw", "write", train=lines)
    with pytest.raises(DataError, match=rf"20 of 60 rows can never be scored, such as row 1: metric '{metric}' {said}"):
        run(tmp_path, task)
    data = run(tmp_path, task, options=dataclasses.replace(SMALL, rows=RowsConfig(filters=FilterConfig(skip_bad=True))))
    assert data.manifest["tasks"]["write"]["counts"]["train"]["cannot_be_scored"] == 20
    assert "20 cannot be scored" in data.notes()[0]


def test_rows_over_several_lines_of_a_table_are_counted_and_said(tmp_path: Path) -> None:
    lines = [f'"a, {i}\nand more",{"yes" if i % 2 else "no"}' for i in range(3)]
    lines += [f"b {i},{'yes' if i % 2 else 'no'}" for i in range(57)]
    (tmp_path / "raw" / "mood").mkdir(parents=True)
    (tmp_path / "raw" / "mood" / "train.csv").write_text("\n".join(["text,label", *lines]))
    assert run(tmp_path).notes() == ["mood, train: 60 rows read; 60 kept; 3 rows over several lines of the file"]
