"""The built-in rows that the package ships are those that tools/builtin_data generates, and the source gives them."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

import write_builtin
from builtin_data import generate, mbpp, names
from dynamorouter.data import builtin
from dynamorouter.data.sources import load, sources
from dynamorouter.errors import DataError
from dynamorouter.tasks.task import Columns, Task

PROGRAMS = Task(
    name="mbpp",
    head="causal_lm",
    columns=Columns(text="text", target="code"),
    metrics=("perplexity",),
    sources={"builtin": {}},
)


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that holds the files of one task as they are shipped."""
    monkeypatch.setattr(write_builtin, "names", lambda: ["mbpp"])
    assert write_builtin.main([], tmp_path) == 0
    return tmp_path


def test_shipped_rows_are_as_generated() -> None:
    assert builtin.names() == names()
    assert [str(path) for path in write_builtin.stale()] == [], "run: python tools/write_builtin.py"


def test_nothing_but_rows_is_shipped() -> None:
    files = {path.relative_to(builtin.FOLDER).as_posix() for path in builtin.FOLDER.rglob("*") if path.is_file()}
    rows = {f"{task}/{split}.jsonl.gz" for task in names() for split in builtin.SPLITS}
    assert {name for name in files if "__pycache__" not in name} == {"__init__.py", *rows}


@pytest.mark.parametrize("split", builtin.SPLITS)
def test_the_source_gives_the_generated_rows_in_order(split: str) -> None:
    assert list(load(PROGRAMS, split, "builtin", {})) == list(enumerate(mbpp.rows(split), start=1))
    other = Task(
        name="words", head="causal_lm", columns=Columns(text="question", target="answer"), metrics=("perplexity",)
    )
    rows = [row for _, row in load(other, split, "builtin", {"module": "gsm8k"})]
    assert rows == generate("gsm8k", split)


def test_a_split_that_is_not_shipped_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="no split 'test'; allowed: train"):
        list(load(PROGRAMS, "test", "builtin", {}))


def test_writing_twice_gives_the_same_bytes(shipped: Path) -> None:
    files = {path: path.read_bytes() for path in shipped.rglob("*.gz")}
    assert len(files) == 2
    for path in files:
        path.unlink()
    write_builtin.main([], shipped)
    assert {path: path.read_bytes() for path in shipped.rglob("*.gz")} == files


@pytest.mark.parametrize("damage", ["missing", "cut", "changed", "extra"])
def test_check_names_what_is_stale_and_writing_mends_it(
    shipped: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = builtin.rows_path("mbpp", "train", shipped)
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "changed":
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"def ", b"deg ", 1)))
    else:
        path = path.with_name("test.jsonl.gz")
        path.write_bytes(gzip.compress(b"{}\n"))
    capsys.readouterr()
    assert write_builtin.main(["--check"], shipped) == 1
    assert f"{path.relative_to(shipped)}: stale\n" in capsys.readouterr().out
    write_builtin.main([], shipped)
    assert write_builtin.main(["--check"], shipped) == 0


def test_the_fingerprint_follows_the_rows_and_not_their_compression(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sources.get("builtin")()
    before = source.fingerprint(PROGRAMS, {})
    monkeypatch.setattr(builtin, "rows_path", lambda task, split: shipped / task / f"{split}.jsonl.gz")
    path = builtin.rows_path("mbpp", "train")
    lines = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(lines, compresslevel=1, mtime=1))
    assert source.fingerprint(PROGRAMS, {}) == before
    path.write_bytes(gzip.compress(lines.replace(b"def ", b"deg ", 1)))
    assert source.fingerprint(PROGRAMS, {}) != before
