"""Texts, JSON lines and records: what is refused, by which name and number, and that writing is all or nothing."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamorouter.errors import DataError
from dynamorouter.tasks.record import Record, SkipCount, check_text, read_jsonl, read_records, write_records
from dynamorouter.tasks.text import normalise, text_key
from dynamorouter.utils.jsonl import read_appended, write_atomic

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
TARGETS = st.one_of(
    TEXTS,
    st.lists(TEXTS),
    st.fixed_dictionaries({"texts": st.lists(TEXTS, max_size=2), "starts": st.lists(st.integers(0, 99), max_size=2)}),
)
RECORDS = st.builds(Record, TEXTS, st.none() | TEXTS, st.integers(0, 9), TEXTS, TARGETS, TEXTS)


@settings(deadline=None)
@given(records=st.lists(RECORDS, max_size=5))
def test_records_survive_a_round_trip(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("records") / "rows.jsonl"
    write_records(path, records)
    assert list(read_records(path)) == records


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"a": 1', "not valid JSON"),
        (b"[1, 2]", "JSON list, not an object"),
        (b'{"a": "\xff"}', r"byte 7 \(0xff\) is not valid UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_a_broken_line_is_named_by_number_or_counted(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 0}\n\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(DataError, match=rf"line 3: .*{said}.*--skip-bad"):
        list(read_jsonl(path))
    skipped = SkipCount()
    assert list(read_jsonl(path, skip_bad=skipped)) == [(1, {"a": 0}), (4, {"a": 2})]
    assert skipped.count == 1
    assert "line 3" in skipped.messages[0]


def test_records_name_missing_keys_and_wrong_types(tmp_path: Path) -> None:
    good = Record("a", None, 0, "t", "x", "1")
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row) for row in ({"text": "a"}, {**good.to_json(), "task_id": "0"}, good.to_json())]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match="line 1: missing pair, task_id, task_name, target, id"):
        list(read_records(path))
    skipped = SkipCount()
    assert list(read_records(path, skip_bad=skipped)) == [good]
    assert skipped.count == 2
    assert "task_id is str" in skipped.messages[1]


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*nothing.jsonl: No such file"):
        list(read_jsonl(tmp_path / "nothing.jsonl"))


def test_compressed_lines_are_read_alike_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    packed = gzip.compress(b'{"a": 0}\n\n{"a": 2}\n')
    path.write_bytes(packed)
    assert list(read_jsonl(path)) == [(1, {"a": 0}), (3, {"a": 2})]
    cut, wrong_sum, no_such_block, plain = packed[:-9], packed[:-8] + bytes(8), packed[:10] + b"\xff", b"not packed"
    for damaged in (cut, wrong_sum, no_such_block, plain):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"rows\.jsonl\.gz is no whole gzip file \(.+\); fetch it again"):
            list(read_jsonl(path))


def test_appended_lines_are_read_up_to_one_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert list(read_appended(path)) == []
    whole = '{"a": "\u2028"}\n'.encode()
    path.write_bytes(whole + b'{"a": 1}\n{"a": 2}')
    first, second = ({"a": "\u2028"}, len(whole)), ({"a": 1}, len(whole) + 9)
    assert list(read_appended(path)) == [first, second]
    assert list(read_appended(path, start=len(whole))) == [second]
    path.write_bytes(whole + b"[1]\n")
    for start in (0, len(whole)):
        with pytest.raises(DataError, match=r"rows\.jsonl, line 2: holds a JSON list.*remove the line and resume"):
            list(read_appended(path, start=start))


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_atomic(path, ["old"])

    def lines() -> Iterator[str]:
        yield "new"
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"cannot write .*No space left"):
        write_atomic(path, lines())
    assert path.read_text(encoding="utf-8") == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="cannot write"):
        write_atomic(tmp_path / "file" / "rows.jsonl", ["x"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        (" \n\t", "is empty"),
        ("a" * 51, "51 characters; at most 50"),
        ("ab\x00", r"U\+0000, at position 2"),
        ("a\x0bb", r"U\+000B, at position 1"),
        ("\x85", "is empty"),
        ("a\x7f", r"U\+007F"),
        ("a\ud800", r"surrogate pair, U\+D800, at position 1"),
        (None, "is NoneType"),
        (3, "is int"),
    ],
)
def test_bad_texts_are_refused_by_name(text: object, said: str) -> None:
    with pytest.raises(DataError, match=f"row 3 .*{said}"):
        check_text(text, where="row 3", max_chars=50)


@pytest.mark.parametrize("text", ["a", "a\nb\tc", "\u200f\u05d0", "\U0001f600", "\ufeffa", "e\u0301"])
def test_good_texts_pass(text: str) -> None:
    check_text(text, where="text")


@settings(deadline=None)
@given(st.text(st.characters(codec="ascii")))
def test_normalising_twice_is_normalising_once(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_equal_texts_share_a_key_and_others_do_not() -> None:
    assert text_key("Hello,  World!", None) == text_key("hello world", None)
    assert text_key("\ufb01ne", None) == text_key("fine", None)
    assert text_key("?", None) != text_key("!", None)
    assert text_key("a b", None) != text_key("a", "b")
    assert text_key("a", "b") != text_key("b", "a")
