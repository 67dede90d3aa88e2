"""Sources give the same rows from every format, and say what is wrong with a file by number and name."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dynamorouter.data import builtin
from dynamorouter.data.convert import convert, native_records
from dynamorouter.data.sources import available_splits, load, source_options, sources
from dynamorouter.errors import ConfigError, DataError
from dynamorouter.tasks.kinds import RowProblem
from dynamorouter.tasks.record import Record, SkipCount
from dynamorouter.tasks.task import Columns, Task

SENTIMENT = Task(
    name="mood",
    head="classification",
    columns=Columns(text="text", target="label"),
    labels=("bad", "good"),
    sources={"local": {}},
)
ROWS = [{"text": "fine, truly", "label": "good"}, {"text": 'so "so"', "label": "bad"}]
NAMES = Task(name="names", head="tags", columns=Columns(text="tokens", target="tags"), labels=("O", "B-X", "I-X"))
ASK = Task(name="ask", head="span", columns=Columns(text="question", target="answers", pair="context", id="id"))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)


def rows_of(task: Task, split: str, source: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [row for _, row in load(task, split, source, options)]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_local_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "mood" / f"train{suffix}", ROWS)
    options = {"root": tmp_path}
    assert available_splits(SENTIMENT, "local", options) == ["train"]
    assert rows_of(SENTIMENT, "train", "local", options) == ROWS


def test_columns_labels_and_splits_are_mapped(tmp_path: Path) -> None:
    write(tmp_path / "m" / "dev.csv", [{"words": "a", "y": 1}, {"words": "b", "y": 0}, {"words": "c", "y": -1}])
    write(tmp_path / "m" / "test.csv", [{"words": "a", "y": -1}])
    options = {
        "root": tmp_path,
        "folder": "m",
        "rename": {"words": "text", "y": "label"},
        "label_names": ["bad", "Good!"],
        "label_map": {"Good!": "good"},
        "splits": {"test": None},
    }
    assert available_splits(SENTIMENT, "local", options) == ["validation"]
    labels = [row["label"] for row in rows_of(SENTIMENT, "validation", "local", options)]
    assert labels == ["good", "bad", None]
    with pytest.raises(ConfigError, match="label 1 has no name"):
        rows_of(SENTIMENT, "validation", "local", {**options, "label_names": ["bad"]})


def test_missing_columns_are_named_beside_those_found(tmp_path: Path) -> None:
    write(tmp_path / "mood" / "train.jsonl", [{"sentence": "a", "label": "good"}])
    with pytest.raises(DataError, match="row 1: column text missing; found sentence, label; needed text, label"):
        rows_of(SENTIMENT, "train", "local", {"root": tmp_path})


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train.jsonl", b'{"text": "a", "label": "good"}\n{oops\n', "train.jsonl, line 2: not valid JSON"),
        ("train.json", b'[{"text": "a", "label": "good"}, 7]', "train.json, row 2: a JSON int"),
        ("train.json", b"7", "holds no list of rows"),
        ("train.json", b"[", "is not valid JSON"),
        ("train.csv", b"text,label\na,good\nb\n", "train.csv, line 3: 1 cells under 2 columns"),
        ("train.csv", b"text,label\n\xff,good\n", "is not valid UTF-8"),
        ("train.parquet", b"PAR1 not really", "train.parquet.* damaged Parquet"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    folder = tmp_path / "mood"
    folder.mkdir()
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        rows_of(SENTIMENT, "train", "local", {"root": tmp_path})


def test_bad_rows_can_be_counted_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "mood").mkdir()
    (tmp_path / "mood" / "train.csv").write_text("text,label\na,good\nb\nc,bad\n", encoding="utf-8")
    skipped = SkipCount()
    rows = list(load(SENTIMENT, "train", "local", {"root": tmp_path}, skip_bad=skipped))
    assert ([number for number, _ in rows], skipped.count) == ([2, 4], 1)


def test_local_folders_and_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"set data\.root"):
        available_splits(SENTIMENT, "local", {})
    with pytest.raises(DataError, match="no folder"):
        available_splits(SENTIMENT, "local", {"root": tmp_path})
    write(tmp_path / "mood" / "train.jsonl", ROWS)
    with pytest.raises(DataError, match=r"no split 'test' in .*found train\.jsonl"):
        rows_of(SENTIMENT, "test", "local", {"root": tmp_path})
    write(tmp_path / "mood" / "train.csv", ROWS)
    with pytest.raises(DataError, match="more than one file"):
        rows_of(SENTIMENT, "train", "local", {"root": tmp_path})
    with pytest.raises(DataError, match="has no source 'hub', only local"):
        source_options(SENTIMENT, "hub")
    with pytest.raises(ConfigError, match=r"unknown source 'loca'.*did you mean 'local'"):
        source_options(SENTIMENT, "loca")


@pytest.mark.parametrize("saved", [True, False])
def test_hub_reads_a_local_folder_in_the_hubs_format(
    tmp_path: Path, saved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    features = datasets.Features(
        tokens=datasets.Sequence(datasets.Value("string")),
        ner_tags=datasets.Sequence(datasets.ClassLabel(names=["O", "B-X"])),
    )
    data = datasets.Dataset.from_dict({"tokens": [["in", "Rome"]], "ner_tags": [[0, 1]]}, features=features)
    if saved:
        datasets.DatasetDict(train=data).save_to_disk(tmp_path / "hub")
    else:
        (tmp_path / "hub").mkdir()
        data.to_parquet(tmp_path / "hub" / "train.parquet")
    options = {"path": str(tmp_path / "hub"), "rename": {"ner_tags": "tags"}, "cache_dir": str(tmp_path / "cache")}
    assert available_splits(NAMES, "hub", options) == ["train"]
    assert rows_of(NAMES, "train", "hub", options) == [{"tokens": ["in", "Rome"], "tags": ["O", "B-X"]}]
    with pytest.raises(DataError, match=r"'names'.*test"):
        rows_of(NAMES, "test", "hub", options)
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        available_splits(NAMES, "hub", {})


def test_builtin_gives_every_task_by_name() -> None:
    for name in builtin.names():
        task = SENTIMENT.model_copy(update={"name": name, "sources": {"builtin": {}}})
        assert available_splits(task, "builtin", {}) == ["train", "validation"]
    with pytest.raises(DataError, match="no built-in data for task 'mood'"):
        available_splits(SENTIMENT, "builtin", {})
    assert {"builtin", "hub", "local"} <= set(sources)


def converted(task: Task, row: dict[str, Any]) -> Record | RowProblem:
    return convert(task, 0, row, "train-1", fixed=Counter())


@pytest.mark.parametrize(
    ("task", "row", "code"),
    [
        (SENTIMENT, {"text": "a", "label": "great"}, "unknown_label"),
        (SENTIMENT, {"text": "a", "label": None}, "no_label"),
        (SENTIMENT, {"text": " ", "label": "good"}, "empty"),
        (SENTIMENT, {"text": "a\x07", "label": "good"}, "control_characters"),
        (SENTIMENT, {"text": "a" * 50_001, "label": "good"}, "too_long"),
        (SENTIMENT, {"text": None, "label": "good"}, "not_text"),
        (NAMES, {"tokens": ["a b"], "tags": ["O"]}, "token_whitespace"),
        (NAMES, {"tokens": ["a", ""], "tags": ["O", "O"]}, "token_whitespace"),
        (NAMES, {"tokens": ["a"], "tags": ["O", "O"]}, "tag_count"),
        (NAMES, {"tokens": ["a"], "tags": ["B-Y"]}, "unknown_label"),
        (NAMES, {"tokens": 5, "tags": ["O"]}, "not_tokens"),
        (NAMES, {"tokens": [], "tags": []}, "empty"),
        (ASK, {"question": "q", "context": "c", "answers": {"text": [], "answer_start": []}}, "unanswerable"),
        (
            ASK,
            {"question": "q", "context": "c", "answers": {"text": ["z"], "answer_start": [0]}},
            "answer_not_in_context",
        ),
        (ASK, {"question": "q", "context": "c", "answers": {"text": ["c"], "answer_start": []}}, "not_answers"),
        (ASK, {"question": "q", "context": "c", "answers": "c"}, "not_answers"),
    ],
)
def test_rows_that_are_no_records_say_why(task: Task, row: dict[str, Any], code: str) -> None:
    problem = converted(task, row)
    assert isinstance(problem, RowProblem)
    assert problem.code == code


def test_native_rows_become_records() -> None:
    tags = converted(NAMES, {"tokens": ["in", "Rome"], "tags": ["O", "B-X"]})
    assert tags == Record("in Rome", None, 0, "names", ["O", "B-X"], "train-1")
    assert converted(NAMES, {"tokens": "in Rome", "tags": '["O", "B-X"]'}) == tags
    answers = {"text": ["cat", "dog", "cat"], "answer_start": [2, 0, 9]}
    span = converted(ASK, {"id": "q7", "question": "what?", "context": "a cat, a cat", "answers": answers})
    assert span == Record("what?", "a cat, a cat", 0, "ask", {"texts": ["cat", "cat"], "starts": [2, 9]}, "q7")


@pytest.mark.parametrize(("start", "moved"), [(0, 2), (5, 2), (6, 9), (99, 9), (-4, 2)])
def test_wrong_offsets_move_to_the_nearest_occurrence(start: int, moved: int) -> None:
    row = {"question": "q", "context": "a cat, a cat", "answers": {"text": ["cat"], "answer_start": [start]}}
    record = converted(ASK, row)
    assert isinstance(record, Record)
    assert record.target == {"texts": ["cat"], "starts": [moved]}


def test_native_records_leave_nothing_out_in_silence() -> None:
    rows = [(1, {"text": "a", "label": "good"}), (2, {"text": "b", "label": "?"}), (3, {"text": "a", "label": "good"})]
    with pytest.raises(
        DataError, match=r"here, row 2: 1 of 3 rows have a label that is none of the task's: '\?' in 1 rows;"
    ):
        native_records(SENTIMENT, rows, where="here", id_prefix="test")
    skipped = SkipCount()
    records = native_records(SENTIMENT, rows, where="here", id_prefix="test", skip_bad=skipped)
    assert ([record.id for record in records], skipped.count) == (["test-1", "test-3"], 1)
