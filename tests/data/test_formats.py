"""Every format of files: the same rows come of each, and each fault is named by its line instead of losing rows."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynamorouter.data import as_records
from dynamorouter.data.config import FilterConfig
from dynamorouter.data.dedup import read_split_rows
from dynamorouter.data.formats import read_rows_file
from dynamorouter.data.native import has_split, read_split
from dynamorouter.data.sources import source_options
from dynamorouter.errors import ConfigError, DataError
from dynamorouter.tasks.record import Record, SkipCount
from dynamorouter.tasks.task import Columns, Task

MOOD = Task(
    name="mood",
    head="classification",
    columns=Columns(text="text", target="label"),
    labels=("bad", "good"),
    sources={"local": {}},
)
NAMES = Task(
    name="names",
    head="tags",
    columns=Columns(text="tokens", target="tags"),
    labels=("O", "B-X", "I-X"),
    metrics=("entity_f1",),
    sources={"local": {}},
)
ASK = Task(
    name="ask",
    head="span",
    columns=Columns(text="question", target="answers", pair="context", id="id"),
    metrics=("squad_f1",),
    sources={"local": {}},
)
WRITE = Task(
    name="write",
    head="causal_lm",
    columns=Columns(text="instruction", pair="input", target="output"),
    metrics=("lm_loss",),
    sources={"local": {}},
)
ROWS = [{"text": "fine, truly", "label": "good"}, {"text": 'so "so"', "label": "bad"}]


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def as_table(rows: list[dict[str, Any]], delimiter: str, path: Path) -> bytes:
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path.read_bytes()


def as_parquet(rows: list[dict[str, Any]], path: Path) -> bytes:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path.read_bytes()


FORMATS: dict[str, Callable[[list[dict[str, Any]], Path], bytes]] = {
    ".jsonl": lambda rows, _: as_lines(rows),
    ".jsonl of a list": lambda rows, _: json.dumps(rows, indent=1).encode(),
    ".json": lambda rows, _: json.dumps(rows).encode(),
    ".json with a mark": lambda rows, _: b"\xef\xbb\xbf" + json.dumps(rows).encode(),
    ".json of data": lambda rows, _: json.dumps({"version": 1, "data": rows}, indent=1).encode(),
    ".json of lines": lambda rows, _: as_lines(rows),
    ".csv": lambda rows, path: as_table(rows, ",", path),
    ".csv with semicolons": lambda rows, path: as_table(rows, ";", path),
    ".tsv": lambda rows, path: as_table(rows, "\t", path),
    ".parquet": as_parquet,
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, packed: bool) -> None:
    content = FORMATS[name](ROWS, tmp_path / "raw")
    path = tmp_path / "mood" / f"train{name.split()[0]}{'.gz' * packed}"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    assert [row for _, row in read_rows_file(path)] == ROWS
    assert has_split(tmp_path, MOOD, "train")
    assert [(record.text, record.target) for record in read_split(MOOD, tmp_path, "train")] == [
        (row["text"], row["label"]) for row in ROWS
    ]


def plain(count: int = 12) -> list[str]:
    return [f"line {i} says {'yes' if i % 2 else 'no'}|{'good' if i % 2 else 'bad'}" for i in range(count)]


def write_table(path: Path, lines: list[str]) -> Path:
    """Write lines whose cells are parted by ``|`` as the file's kind has it."""
    path.write_text(
        "".join(f"{line}\n" for line in ["text|label", *lines]).replace("|", "\t" if "tsv" in path.name else ",")
    )
    return path


def spoilt(change: dict[int, Callable[[str], str]]) -> list[str]:
    return [change.get(i, str)(line) for i, line in enumerate(plain())]


STRAY = {4: lambda line: f'"{line}', 8: lambda line: line.replace("|", '"|')}
"""Quotation marks at the start of one text and at the end of a later one: between them are rows."""


@pytest.mark.parametrize(
    ("name", "change", "quote", "outcome"),
    [
        ("t.tsv", STRAY, None, 12),
        ("t.tsv", STRAY, "none", 12),
        ("t.tsv", {4: lambda line: f'"{line}'}, None, 12),
        ("t.tsv", {4: lambda line: f'"{line.replace("|", chr(34) + "|")}'}, None, 12),
        ("t.csv", STRAY, None, r"t\.csv, lines 6 to 10: one row of 5 lines.*`quote: none`.*`quote: double`"),
        ("t.csv", STRAY, "none", 12),
        ("t.csv", STRAY, False, 12),
        ("t.csv", STRAY, "double", 8),
        ("t.csv", {4: lambda line: f'"{line}', 5: STRAY[8]}, None, r"lines 6 to 7: one row of 2 lines"),
        (
            "t.csv",
            {4: lambda line: f'"{line}'},
            None,
            r"t\.csv, line 6: a quotation mark that is not closed.*quote: none",
        ),
        ("t.csv", {4: lambda line: f'"{line}', 7: lambda line: f'"{line}"'}, None, r"line 6: a quotation mark"),
        (
            "t.csv",
            {4: lambda line: line.replace("line", '"line" of')},
            None,
            r"line 6: a quotation mark .*expected after",
        ),
        ("t.csv", {4: lambda line: line.replace("says", 'says "so"')}, None, 12),
        ("t.csv", {4: lambda line: f"{line}|x"}, None, r"t\.csv, line 6: 3 cells under 2 columns"),
        ("t.tsv", {4: lambda line: line.replace("|", " ")}, None, r"t\.tsv, line 6: 1 cells under 2 columns"),
        ("t.csv", STRAY, "single", r"quote is 'single'; allowed: none"),
    ],
)
def test_a_stray_quotation_mark_loses_no_row(
    tmp_path: Path, name: str, change: dict[int, Callable[[str], str]], quote: Any, outcome: int | str
) -> None:
    path = write_table(tmp_path / name, spoilt(change))
    options = {} if quote is None else {"quote": quote}
    if isinstance(outcome, int):
        rows = list(read_rows_file(path, options=options))
        assert len(rows) == outcome
        assert [number for number, _ in rows][:4] == [2, 3, 4, 5]
    else:
        with pytest.raises((DataError, ConfigError), match=outcome):
            list(read_rows_file(path, options=options))


def test_of_a_mark_that_is_never_closed_one_line_is_skipped(tmp_path: Path) -> None:
    path, skipped = write_table(tmp_path / "t.csv", spoilt({4: STRAY[4], 8: STRAY[4]})), SkipCount()
    rows = list(read_rows_file(path, skip_bad=skipped))
    assert (len(rows), skipped.count) == (10, 2)
    assert [number for number, _ in rows] == [2, 3, 4, 5, 7, 8, 9, 11, 12, 13]


def test_cells_with_line_ends_are_read_and_numbered_by_their_first_line(tmp_path: Path) -> None:
    lines = [f'"item {i}, is so\nsays ""yes"" {i}"|good' for i in range(5)] + plain(1)
    rows = list(read_rows_file(write_table(tmp_path / "t.csv", lines)))
    assert [number for number, _ in rows] == [2, 4, 6, 8, 10, 12]
    assert rows[1][1] == {"text": 'item 1, is so\nsays "yes" 1', "label": "good"}
    with pytest.raises(DataError, match=r"line 2: 1 cells under 2 columns; if .* around cells, set `quote: double`"):
        list(read_rows_file(write_table(tmp_path / "t.tsv", lines)))
    assert len(list(read_rows_file(tmp_path / "t.tsv", options={"quote": "double"}))) == 6


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", b"text,text\na,b\n", "more than one column is called 'text'"),
        ("t.csv", b'"text,label\na,good\n', "line 1: a quotation mark"),
        ("t.csv", b"text,label\n\xffa,good\n", r"not valid UTF-8 at byte 11 \(0xff\)"),
        ("t.csv.gz", b"plain", r"t\.csv\.gz is no whole gzip file"),
        ("t.csv.gz", gzip.compress(b"text,label\n" * 99, mtime=0)[:-9], "is no whole gzip file"),
        ("t.parquet.gz", gzip.compress(b"PAR1", mtime=0), "damaged Parquet"),
        ("t.json", b'{"train": []}\n', "holds no list of rows but 'train'|column"),
        ("t.json", b'{\n"train": []}\n', "holds no list of rows but 'train'"),
        ("t.json", b"7", "holds no list of rows"),
        ("t.json", b'{"a": 1}\n{"a": \n', "line 2: not valid JSON"),
        ("t.jsonl", b'[{"a": 1}, 2]', "row 2: a JSON int"),
        ("t.xlsx", b"", r"t\.xlsx is no file of rows .*allowed: \.csv, \.csv\.gz, \.json"),
        ("t.conll", b"", "is no file of rows"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    if "parquet" in name:
        pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match=said):
        as_records([row for _, row in read_rows_file(path)], MOOD, where=str(path))


CONLL = """-DOCSTART- -X- -X- O

# sent_id = 1
In IN I-PP O
New NNP I-NP B-X
York NNP I-NP I-X

# NN B-NP O
tags NNS I-NP O
"""


@pytest.mark.parametrize("suffix", [".conll", ".txt", ".txt.gz"])
def test_words_and_tags_in_columns_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "names" / f"train{suffix}"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(CONLL.encode()) if suffix.endswith("gz") else CONLL.encode())
    assert read_split(NAMES, tmp_path, "train") == [
        Record("In New York", None, 0, "names", ["O", "B-X", "I-X"], "train-4"),
        Record("# tags", None, 0, "names", ["O", "O"], "train-8"),
    ]


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ("A O\n\nIn\tO\nRome\n\nB O\n", {}, r"line 4: 1 columns, not 2 with a word and a tag: 'Rome'"),
        ("In\nRome\n", {}, "line 1: 1 columns, not 2"),
        ("In X O\nRome O\n", {}, "line 2: 2 columns, not 3"),
        ("In O\n", {"tag_column": 2}, "line 1: 2 columns, not 2"),
        ("In O\n", {"tag_column": "last"}, "tag_column is 'last'; give the number"),
    ],
)
def test_a_line_without_word_and_tag_is_named(tmp_path: Path, content: str, options: dict[str, Any], said: str) -> None:
    path = tmp_path / "t.conll"
    path.write_text(content)
    with pytest.raises((DataError, ConfigError), match=said):
        list(read_rows_file(path, NAMES, options))


def test_columns_of_words_and_tags_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "t.conll"
    path.write_text("1\tNew York\tB-X\t_\n\n")
    rows = list(read_rows_file(path, NAMES, {"token_column": 1, "tag_column": 2}))
    assert rows == [(1, {"tokens": ["New York"], "tags": ["B-X"]})]


CONTEXT = "The mill stands by the Arn and was built in 1874."
ANSWER: dict[str, Any] = {"text": "1874", "answer_start": CONTEXT.index("1874")}
GOLD: dict[str, list[Any]] = {"texts": ["1874"], "starts": [ANSWER["answer_start"]]}


def nested(answers: Any = None) -> dict[str, Any]:
    question = {"id": "q1", "question": "When?", "answers": [ANSWER] if answers is None else answers}
    return {"version": "1.1", "data": [{"title": "mill", "paragraphs": [{"context": CONTEXT, "qas": [question] * 2}]}]}


@pytest.mark.parametrize("indent", [None, 1])
def test_squads_own_file_is_read(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "ask" / "train.json"
    path.parent.mkdir()
    path.write_text(json.dumps(nested(), indent=indent))
    records = read_split(ASK, tmp_path, "train")
    assert records == [Record("When?", CONTEXT, 0, "ask", GOLD, "q1")] * 2
    assert [number for number, _ in read_rows_file(path)] == [1, 2]
    path.write_text(json.dumps({"data": [{"paragraphs": [{"qas": [{"question": "When?"}]}]}]}))
    with pytest.raises(DataError, match=r"article 1: not in SQuAD's form.*KeyError: 'context'"):
        read_split(ASK, tmp_path, "train")


@pytest.mark.parametrize(
    "answers",
    [
        [ANSWER],
        {"text": ["1874"], "answer_start": [ANSWER["answer_start"]]},
        {"text": ["1874"], "answer_start": [float(ANSWER["answer_start"])]},
        ANSWER,
        json.dumps([ANSWER]),
        str({"text": ["1874"], "answer_start": [ANSWER["answer_start"]]}),
    ],
    ids=["objects", "lists", "floats", "one", "json", "python"],
)
def test_answers_of_every_form_are_read(answers: Any) -> None:
    rows = [{"id": "q1", "question": "When?", "context": CONTEXT, "answers": answers}]
    assert as_records(rows, ASK, where="rows")[0].target == GOLD


def test_questions_without_an_answer_are_counted_and_stop(tmp_path: Path) -> None:
    path = tmp_path / "ask" / "train.json"
    path.parent.mkdir()
    data = nested()
    data["data"][0]["paragraphs"].append({"context": "b", "qas": [{"id": "q2", "question": "Who?", "answers": []}] * 3})
    path.write_text(json.dumps(data))
    options = source_options(ASK, "local", {"root": str(tmp_path)})
    with pytest.raises(DataError, match=r"3 of 5 rows are questions without an answer.*row 3.*--skip-bad"):
        read_split_rows(ASK, 0, "local", options, FilterConfig())
    assert read_split_rows(ASK, 0, "local", options, FilterConfig(skip_bad=True))["train"].counts["unanswerable"] == 3
    open_ask = ASK.model_copy(update={"null_threshold": 0.0, "metrics": ("squad2_f1",)})
    targets = [record.target for record in read_split(open_ask, tmp_path, "train")]
    assert targets == [GOLD, GOLD, *[{"texts": [], "starts": []}] * 3]
    with pytest.raises(DataError, match=r"metric 'squad_f1' finds no gold answer; take squad2_em and squad2_f1"):
        read_split(open_ask.model_copy(update={"metrics": ("squad_f1",)}), tmp_path, "train")


def turns(*spoken: str, form: tuple[str, str] = ("role", "content")) -> list[dict[str, Any]]:
    return [dict(zip(form, turn.split(": ", 1), strict=True)) for turn in spoken]


@pytest.mark.parametrize(
    ("row", "text", "answer"),
    [
        ({"instruction": "a", "input": "b", "output": "c"}, "a", "c"),
        ({"instruction": "a", "output": "c"}, "a", "c"),
        ({"instruction": "a", "input": None, "output": "c"}, "a", "c"),
        ({"instruction": "a", "input": float("nan"), "output": "c"}, "a", "c"),
        ({"messages": turns("user: a", "assistant: c")}, "a", "c"),
        ({"messages": json.dumps(turns("user: a", "assistant: c"))}, "a", "c"),
        ({"messages": turns("system: s", "user: a", "assistant: c")}, "s\n\na", "c"),
        ({"conversations": turns("human: a", "gpt: c", form=("from", "value"))}, "a", "c"),
        (
            {"messages": turns("user: a", "assistant: b", "user: d", "assistant: c")},
            "User: a\n\nAssistant: b\n\nUser: d",
            "c",
        ),
        ({"instruction": turns("user: a"), "output": "c"}, "a", "c"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, *turns("model: c")]}, "a", "c"),
    ],
)
def test_instructions_and_conversations_are_read(row: dict[str, Any], text: str, answer: str) -> None:
    record = as_records([row], WRITE, where="rows")[0]
    assert (record.text, record.pair, record.target) == (
        text,
        row.get("input") if row.get("input") == "b" else None,
        {"texts": [answer]},
    )


def test_one_column_holds_text_and_answer() -> None:
    task = WRITE.model_copy(update={"columns": Columns(text="messages", target="messages")})
    record = as_records([{"messages": turns("user: a", "assistant: c")}], task, where="rows")[0]
    assert (record.text, record.target) == ("a", {"texts": ["c"]})


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (turns("user: a"), "output does not end with a turn of the assistant"),
        (turns("user: a", "tool: b", "assistant: c"), "turn 2 is by 'tool'; allowed: system"),
        (turns("system: a", "assistant: c"), "the user's turn is missing"),
        ([{"role": "user", "content": [{"type": "image"}]}, *turns("assistant: c")], "turn 1 holds .* no text"),
        ("text", "column instruction, output missing; found messages"),
        ([], "column instruction, output missing; found messages"),
    ],
)
def test_what_is_no_exchange_is_named(messages: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        as_records([{"messages": messages}], WRITE, where="rows")


def test_lists_in_tables_are_read_as_python_writes_them() -> None:
    rows = [{"tokens": "['in', 'Rome']", "tags": "['O', 'B-X']"}, {"tokens": ("in", "Rome"), "tags": ("O", "B-X")}]
    assert [record.text for record in as_records(rows, NAMES, where="rows")] == ["in Rome"] * 2


def test_the_readers_serve_preparation_too(tmp_path: Path) -> None:
    (tmp_path / "mood").mkdir()
    write_table(tmp_path / "mood" / "train.tsv", spoilt(STRAY))
    pools = read_split_rows(MOOD, 0, "local", source_options(MOOD, "local", {"root": str(tmp_path)}), FilterConfig())
    assert pools["train"].counts["read"] == pools["train"].counts["kept"] == 12
