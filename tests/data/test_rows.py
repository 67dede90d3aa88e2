"""Rows that a program has at hand become records: from a data set, a table, mappings or records; none is dropped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dynamorouter.data import as_records
from dynamorouter.errors import DataError
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Columns, Task

MOOD = Task(
    name="mood",
    head="classification",
    columns=Columns(text="text", target="label"),
    labels=("bad", "good"),
    sources={"local": {}, "hub": {"rename": {"sentence": "text"}}},
)
ROWS = [{"text": "fine", "label": "good"}, {"text": "dull", "label": "bad"}]
RECORDS = [Record("fine", None, 0, "mood", "good", "row-1"), Record("dull", None, 0, "mood", "bad", "row-2")]


class Frame:
    """As much of a data frame as is read."""

    columns = ("text", "label")

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return ROWS


def test_tables_of_other_libraries_are_read() -> None:
    pandas, arrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    assert as_records(arrow.Table.from_pylist(ROWS), MOOD, where="rows") == RECORDS
    assert as_records(pandas.DataFrame(ROWS), MOOD, where="rows") == RECORDS
    lists = pandas.DataFrame([{"tokens": ["in", "Rome"], "tags": [0, 1]}]).map(lambda cell: np.array(cell))
    names = Task(name="n", head="tags", columns=Columns(text="tokens", target="tags"), labels=("O", "B-X"))
    named = names.model_copy(update={"sources": {"local": {"label_names": ["O", "B-X"]}}})
    assert as_records(lists, named, where="rows")[0].target == ["O", "B-X"]
    with pytest.raises(DataError, match=r"'0' in 1 rows.*`label_names`"):
        as_records(lists, names, where="rows")


@pytest.mark.parametrize(
    "rows",
    [ROWS, iter(ROWS), Frame(), RECORDS, [{"sentence": row["text"], "label": row["label"]} for row in ROWS]],
    ids=["mappings", "iterator", "frame", "records", "columns of a source"],
)
def test_rows_of_every_kind_are_the_same_records(rows: Any) -> None:
    assert as_records(rows, MOOD, where="rows of 'mood'") == RECORDS


@pytest.mark.parametrize("form", ["plain", "numpy", "stream"])
def test_a_data_set_is_read_with_the_names_of_its_integer_labels(form: str) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(sentence=datasets.Value("string"), label=datasets.ClassLabel(names=["good", "bad"]))
    data = datasets.Dataset.from_dict({"sentence": ["fine", "dull"], "label": [0, 1]}, features=features)
    given = {"plain": data, "numpy": data.with_format("numpy"), "stream": data.to_iterable_dataset()}[form]
    assert as_records(given, MOOD, where="rows of 'mood'") == RECORDS
    with pytest.raises(DataError, match=r"rows: got one DatasetDict, not rows; .*give one split"):
        as_records(datasets.DatasetDict(train=data), MOOD, where="rows")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], r"rows: there are none"),
        ("text", r"rows: got one str, not rows; give a datasets\.Dataset"),
        (5, r"rows: got int; give a datasets\.Dataset"),
        ([*ROWS, "text"], r"rows, row 3: got str 'text'; give mappings, or records alone"),
        ([*ROWS, {"text": "a"}], r"rows, row 3: column label missing; found text; task 'mood' needs text, label"),
        ([{"words": "a"}], r"rows, row 1: column text, label missing; found words"),
        ([*ROWS, {"text": "", "label": "bad"}], r"rows, row 3: text is empty"),
        ([{**row, "label": float("nan")} for row in ROWS], r"rows, row 1: the label is empty"),
        ([Record("a", None, 0, "topic", "x", "1")], r"row 1: a record of task 'topic', not of 'mood'"),
    ],
)
def test_what_is_no_row_is_named(rows: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        as_records(rows, MOOD, where="rows")


def test_rows_that_can_never_be_scored_are_named() -> None:
    sums = Task(name="sums", head="causal_lm", columns=Columns(text="q", target="a"), metrics=("final_number",))
    assert len(as_records([{"q": "1 + 1", "a": "#### 2"}], sums, where="rows")) == 1
    with pytest.raises(DataError, match=r"rows, row 2: metric 'final_number' finds no number in the target 'two'"):
        as_records([{"q": "1 + 1", "a": "#### 2"}, {"q": "1 + 1", "a": "two"}], sums, where="rows")
