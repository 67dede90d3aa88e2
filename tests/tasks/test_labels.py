"""What a file writes for a label, and which label of the task it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dynamorouter.data import as_records
from dynamorouter.data.sources import in_task_columns
from dynamorouter.errors import DataError
from dynamorouter.tasks.labels import is_missing, match_label, nearest_label
from dynamorouter.tasks.task import Columns, Task


@pytest.mark.parametrize(
    ("labels", "value", "label"),
    [
        ("bad good", "bad", "bad"),
        ("bad good", "bad ", "bad"),
        ("bad good", "\u00a0bad\n", "bad"),
        ("bad good", "Bad", None),
        ("bad good", "bda", None),
        ("bad good", 0, None),
        ("bad good", ["bad"], None),
        ("bad good", None, None),
        ("caf\u00e9 bar", "cafe\u0301", "caf\u00e9"),
        ("cafe\u0301 bar", "caf\u00e9", "cafe\u0301"),
        ("0 1", 0, "0"),
        ("0 1", 1.0, "1"),
        ("0 1", "1.0", "1"),
        ("0 1", True, "1"),
        ("0 1", "FALSE", "0"),
        ("0 1", np.int64(1), "1"),
        ("0 1", np.array(0), "0"),
        ("0 1", 2, None),
        ("0 1", float("nan"), None),
        ("0.5 1.5", "0.50", "0.5"),
        ("false true", "True", "true"),
        ("false true", 0, "false"),
        ("-1 0 1", "-1", "-1"),
        ("1 1.0 2", "1.0", "1.0"),
        ("1 1.0 2", "1.00", None),
        ("nan inf", "nan", "nan"),
        ("1000 x", "1_000", None),
    ],
)
def test_a_value_is_matched_to_its_label(labels: str, value: Any, label: str | None) -> None:
    assert match_label(value, labels.split()) == label


def test_white_space_within_a_label_is_one_blank() -> None:
    assert match_label(" very  good", ["bad", "very good"]) == "very good"


@pytest.mark.parametrize(
    ("value", "missing"), [(None, True), (" ", True), (float("nan"), True), (0, False), ("x", False)]
)
def test_an_empty_cell_is_no_label(value: Any, missing: bool) -> None:
    assert is_missing(value) is missing


@pytest.mark.parametrize(("value", "near"), [("GOOD", "good"), ("goood", "good"), ("Bad.", "bad"), (7, None)])
def test_the_nearest_label_is_named(value: Any, near: str | None) -> None:
    assert nearest_label(value, ["bad", "good"]) == near


@pytest.mark.parametrize(
    ("options", "value", "label"),
    [
        ({"label_names": ["bad", "good"]}, 1, "good"),
        ({"label_names": ["bad", "good"]}, "1.0", "good"),
        ({"label_names": ["bad", "good"]}, "good", "good"),
        ({"label_names": ["bad", "good"]}, -1, None),
        ({"label_map": {0: "bad", 1: "good"}}, "1", "good"),
        ({"label_map": {"neg": "bad", "so so": None}}, "neg ", "bad"),
        ({"label_map": {"neg": "bad", "so so": None}}, "so so", None),
        ({}, -1, None),
    ],
)
def test_a_source_says_what_its_labels_are(options: dict[str, Any], value: Any, label: str | None) -> None:
    task = Task(name="t", head="classification", columns=Columns(text="x", target="y"), labels=("bad", "good"))
    assert in_task_columns(task, {"x": "a", "y": value}, options) == {"x": "a", "y": label}
    signed = task.model_copy(update={"labels": ("-1", "1")})
    assert in_task_columns(signed, {"x": "a", "y": -1}, {})["y"] == -1


def test_labels_that_are_none_are_counted_with_the_nearest_name_and_the_remedy() -> None:
    task = Task(name="t", head="classification", columns=Columns(text="x", target="y"), labels=("bad", "good"))
    rows = [{"x": f"row {i}", "y": label} for i, label in enumerate(["bad", "Good", "Good", "odd"])]
    with pytest.raises(DataError) as caught:
        as_records(rows, task, where="rows")
    said = "rows, row 2: 3 of 4 rows have a label that is none of the task's: 'Good' in 2 rows (did you mean 'good'?), "
    assert str(caught.value).startswith(said)
    assert "allowed: bad, good; correct them, or say in `label_map`" in str(caught.value)
    with pytest.raises(DataError, match=r"'0' in 1 rows; .*list the names of numbered labels.*`label_names`"):
        as_records([{"x": "a", "y": 0}], task, where="rows")
    tags = Task(name="n", head="tags", columns=Columns(text="x", target="y"), labels=("O", "B-X", "I-X"))
    with pytest.raises(DataError, match=r"1 of 1 rows .*'B-Y' in 1 rows"):
        as_records([{"x": ["a", "b", "c"], "y": ["B-Y", "B-Y", "O "]}], tags, where="rows")
