"""Laws of preparation: disjoint, leak-free, stratified, drawn by content, resumable, independent of other tasks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamorouter.data.augment import augmented
from dynamorouter.data.config import AugmentConfig, FilterConfig, RowsConfig
from dynamorouter.data.dedup import key_of
from dynamorouter.data.lengths import truncation_report
from dynamorouter.data.prepare import (
    HELD_OUT_SPLITS,
    NAMES_BEFORE,
    PREPARED_SPLITS,
    TRAIN_SPLITS,
    PreparedData,
    PrepareOptions,
    load_prepared,
    prepare,
)
from dynamorouter.data.split import draw, largest_remainder
from dynamorouter.errors import ConfigError, DataError
from dynamorouter.tasks.kinds import head_kind
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Columns, Task
from dynamorouter.tasks.text import MAX_CHARS

SMALL = PrepareOptions(train_rows=40, router_rows=20, joint_rows=10, select_rows=10, calibrate_rows=10, report_rows=20)


def task_called(name: str) -> Task:
    return Task(
        name=name,
        head="classification",
        columns=Columns(text="text", target="label"),
        labels=("no", "yes"),
        sources={"local": {}},
    )


MOOD = task_called("mood")


def rows(count: int, prefix: str, yes: float = 0.25) -> list[dict[str, str]]:
    return [{"text": f"{prefix} number {i}", "label": "yes" if i < count * yes else "no"} for i in range(count)]


def write(root: Path, task: str = "mood", **splits: list[dict[str, Any]]) -> None:
    (root / task).mkdir(parents=True, exist_ok=True)
    for split, lines in splits.items():
        (root / task / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")


def run(tmp_path: Path, *tasks: Task, out: str = "out", options: PrepareOptions = SMALL) -> PreparedData:
    where = {"root": str(tmp_path / "raw")}
    return prepare(tasks or [MOOD], tmp_path / out, source="local", source_options=where, options=options)


def texts(data: PreparedData, task: str = "mood") -> dict[str, list[str]]:
    return {name: [record.text for record in data.split(name, task)] for name in PREPARED_SPLITS}


def test_splits_are_disjoint_stratified_and_of_the_sizes_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "raw", train=rows(100, "train"), validation=rows(40, "validation"))
    data = run(tmp_path)
    sizes = {name: len(data.split(name, "mood")) for name in PREPARED_SPLITS}
    assert sizes == {"train": 40, "router": 20, "joint": 10, "validation": 10, "calibration": 10, "test": 20}
    everything = [record for name in PREPARED_SPLITS for record in data.split(name, "mood")]
    assert len({key_of(record) for record in everything}) == len({record.id for record in everything}) == 110
    for name in PREPARED_SPLITS:
        labels = Counter(str(record.target) for record in data.split(name, "mood"))
        assert abs(labels["yes"] - sizes[name] / 4) <= 1, name
    assert {record.task_id for record in everything} == {0}


def test_a_short_validation_file_is_halved_between_selection_and_report(tmp_path: Path) -> None:
    write(tmp_path / "raw", train=rows(100, "train"), validation=rows(20, "validation"))
    data = run(tmp_path)
    assert [len(data.split(name, "mood")) for name in HELD_OUT_SPLITS] == [5, 5, 10]


def test_held_out_splits_are_carved_from_train_where_there_are_none(tmp_path: Path) -> None:
    write(tmp_path / "raw", train=rows(200, "train"))
    data = run(tmp_path)
    assert [len(data.split(name, "mood")) for name in HELD_OUT_SPLITS] == [10, 10, 20]
    assert data.manifest["tasks"]["mood"]["counts"]["train"]["carved"] == 40


def test_report_is_the_test_split_where_there_is_one(tmp_path: Path) -> None:
    same = {"text": "In both!", "label": "no"}
    write(
        tmp_path / "raw",
        train=rows(100, "train"),
        validation=[*rows(30, "validation"), same],
        test=[*rows(19, "test"), same],
    )
    data = run(tmp_path)
    found = texts(data)
    assert {text.split()[0] for text in found["test"]} == {"test", "In"}
    assert {text.split()[0] for text in found["validation"] + found["calibration"]} == {"validation"}
    assert data.manifest["tasks"]["mood"]["counts"]["validation"]["also_in_test"] == 1


def test_leaks_leave_train_with_a_count_or_fail_with_it(tmp_path: Path) -> None:
    leaks = [{"text": f"  VALIDATION -- number {i}. ", "label": "no"} for i in range(7)]
    write(tmp_path / "raw", train=rows(100, "train") + leaks, validation=rows(40, "validation"))
    data = run(tmp_path)
    entry = data.manifest["tasks"]["mood"]
    assert entry["leaks"] == {"found": 7, "left": 0}
    assert entry["counts"]["train"] == {"read": 107, "bad": 0, "leak": 7, "kept": 100}
    trained = {key_of(record) for name in TRAIN_SPLITS for record in data.split(name, "mood")}
    assert not any("validation" in key for key in trained)
    with pytest.raises(DataError, match="7 of 107 training rows are in validation or test"):
        run(tmp_path, out="other", options=dataclasses.replace(SMALL, rows=RowsConfig(leaks="fail")))
    write(tmp_path / "raw", train=rows(40, "Validation"))
    with pytest.raises(DataError, match="all rows of train are in a split held out"):
        run(tmp_path)


def test_filters_drop_with_counts(tmp_path: Path) -> None:
    bad = [
        {"text": "", "label": "no"},
        {"text": "bell \x07", "label": "no"},
        {"text": "word " * 50, "label": "no"},
        {"text": "x" * 300, "label": "no"},
        {"text": "strange", "label": "perhaps"},
        {"text": "Train number, 3", "label": "no"},
    ]
    write(tmp_path / "raw", train=rows(100, "train") + bad, validation=rows(40, "validation"))
    options = dataclasses.replace(
        SMALL, rows=RowsConfig(filters=FilterConfig(max_chars=299, max_words=49, unknown_labels="drop"))
    )
    data = run(tmp_path, options=options)
    assert data.manifest["tasks"]["mood"]["counts"]["train"] == {
        "read": 106, "kept": 100, "bad": 0, "leak": 0, "empty": 1,
        "control_characters": 1, "too_long": 2, "unknown_label": 1, "duplicate_with_another_target": 1,
    }  # fmt: skip
    assert data.notes() == [
        "mood, train: 106 rows read; 100 kept; left out: 1 control characters, 1 duplicate with another target, "
        "1 empty, 2 too long, 1 unknown label"
    ]


def test_broken_rows_stop_or_are_counted_and_nothing_left_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "raw", train=[*rows(100, "train"), {"text": 5, "label": "no"}], validation=rows(40, "v"))
    with pytest.raises(DataError, match=r"row 101: text is int '5', not a string.*--skip-bad"):
        run(tmp_path)
    data = run(tmp_path, options=dataclasses.replace(SMALL, rows=RowsConfig(filters=FilterConfig(skip_bad=True))))
    assert data.manifest["tasks"]["mood"]["counts"]["train"]["bad"] == 1
    write(tmp_path / "raw", train=[{"text": f"a{i}", "label": "maybe"} for i in range(9)])
    with pytest.raises(
        DataError, match=r"split 'train': 9 of 9 rows have a label .*'maybe' in 9 rows; allowed: no, yes; .*=drop"
    ):
        run(tmp_path)
    with pytest.raises(DataError, match=r"nothing is left of the 9 rows of split 'train'.*\n- .*row 1: label 'maybe'"):
        run(tmp_path, options=dataclasses.replace(SMALL, rows=RowsConfig(filters=FilterConfig(unknown_labels="drop"))))
    (tmp_path / "raw" / "mood" / "train.jsonl").unlink()
    with pytest.raises(DataError, match="no train split, only validation"):
        run(tmp_path)


def test_the_order_of_the_file_changes_nothing(tmp_path: Path) -> None:
    lines = rows(100, "train")
    write(tmp_path / "raw", train=lines, validation=rows(40, "validation"))
    first = texts(run(tmp_path))
    write(tmp_path / "raw", train=random.Random(1).sample(lines, 100))
    assert texts(run(tmp_path)) == first
    other = texts(run(tmp_path, options=dataclasses.replace(SMALL, seed=1)))
    assert set(other["train"]) != set(first["train"])


def test_another_task_changes_nothing(tmp_path: Path) -> None:
    for name in ("mood", "topic"):
        write(tmp_path / "raw", name, train=rows(100, "train"), validation=rows(40, "validation"))
    alone = run(tmp_path, out="alone")
    both = run(tmp_path, MOOD, task_called("topic"), out="both")
    for name in PREPARED_SPLITS:
        one, two = (tmp_path / folder / "mood" / f"{name}.jsonl" for folder in ("alone", "both"))
        assert one.read_bytes() == two.read_bytes()
    assert alone.split("train", "mood") == both.split("train", "mood")
    assert texts(both, "topic") != texts(both, "mood")


def test_a_larger_train_split_holds_the_smaller(tmp_path: Path) -> None:
    write(tmp_path / "raw", train=rows(200, "train"), validation=rows(40, "validation"))
    small = texts(run(tmp_path, out="small"))
    large = texts(run(tmp_path, out="large", options=dataclasses.replace(SMALL, train_rows=80)))
    assert set(small["train"]) < set(large["train"])
    assert small["router"] == large["router"]


def test_too_few_rows_shrink_overlap_or_fail(tmp_path: Path) -> None:
    write(tmp_path / "raw", train=rows(35, "train"), validation=rows(40, "validation"))
    shrunk = run(tmp_path, out="a")
    assert [len(shrunk.split(name, "mood")) for name in TRAIN_SPLITS] == [20, 10, 5]
    shared = run(tmp_path, out="b", options=dataclasses.replace(SMALL, rows=RowsConfig(when_short="overlap")))
    assert [len(shared.split(name, "mood")) for name in TRAIN_SPLITS] == [35, 20, 10]
    assert shared.manifest["tasks"]["mood"]["shared_by_training_splits"] > 0
    with pytest.raises(DataError, match="35 training rows for"):
        run(tmp_path, out="c", options=dataclasses.replace(SMALL, rows=RowsConfig(when_short="fail")))
    rest = run(tmp_path, out="d", options=dataclasses.replace(SMALL, train_rows=None))
    assert [len(rest.split(name, "mood")) for name in TRAIN_SPLITS] == [18, 11, 6]


def test_finished_tasks_are_reused_and_damaged_ones_are_made_again(tmp_path: Path) -> None:
    write(tmp_path / "raw", train=rows(100, "train"), validation=rows(40, "validation"))
    run(tmp_path)
    train, router = (tmp_path / "out" / "mood" / f"{name}.jsonl" for name in ("train", "router"))
    content, stamp = train.read_bytes(), train.stat().st_mtime_ns
    run(tmp_path)
    assert train.stat().st_mtime_ns == stamp
    train.write_bytes(content[:-20])
    router.unlink()
    (tmp_path / "out" / "mood" / ".train.jsonl.1.tmp").touch()
    run(tmp_path)
    assert train.read_bytes() == content
    assert router.is_file()
    assert not list((tmp_path / "out").rglob("*.tmp"))
    (train.parent / "manifest.json").write_text("{")
    stamp = train.stat().st_mtime_ns
    run(tmp_path)
    assert train.stat().st_mtime_ns > stamp and train.read_bytes() == content
    write(tmp_path / "raw", train=rows(100, "fresh"))
    assert texts(run(tmp_path))["train"][0].startswith("fresh")


def test_prepared_data_is_opened_again_and_checked(tmp_path: Path) -> None:
    write(tmp_path / "raw", train=rows(100, "train"), validation=rows(40, "validation"))
    with pytest.raises(DataError, match="no completely prepared data"):
        load_prepared(tmp_path / "out", ["mood"])
    made = run(tmp_path)
    opened = load_prepared(tmp_path / "out", ["mood"])
    assert opened.split("validation", "mood") == made.split("validation", "mood")
    with pytest.raises(DataError, match="lacks topic"):
        load_prepared(tmp_path / "out", ["mood", "topic"])
    manifest = tmp_path / "out" / "manifest.json"
    written = manifest.read_text()
    for text, said in (("{", "it is not JSON"), (written.replace('"format": 1', '"format": 9'), "has format 9")):
        manifest.write_text(text)
        with pytest.raises(DataError, match=rf"manifest\.json .*{said}.*run `dynamorouter prepare"):
            load_prepared(tmp_path / "out", ["mood"])
    with pytest.raises(DataError, match=r"unknown split 'tran' \(did you mean 'train'"):
        opened.split("tran", "mood")
    with pytest.raises(DataError, match="no task 'mod'"):
        opened.split("train", "mod")
    (tmp_path / "out" / "mood" / "validation.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="was changed after it was prepared"):
        opened.split("validation", "mood")


def test_all_wrong_options_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        PrepareOptions(train_rows=0, carve=1.5, select_rows=0)
    for word in ("train_rows is 0", "carve is 1.5", "select_rows is 0"):
        assert word in str(caught.value)


def test_task_names_are_given_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="given twice: mood"):
        run(tmp_path, MOOD, MOOD)


@settings(deadline=None)
@given(counts=st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 50), max_size=6), total=st.integers(0, 200))
def test_shares_add_up_and_never_exceed_what_there_is(counts: dict[str, int], total: int) -> None:
    shares = largest_remainder(counts, total)
    there = sum(counts.values())
    assert sum(shares.values()) == min(total, there)
    for name, count in counts.items():
        assert 0 <= shares[name] <= count
        assert abs(shares[name] - min(total, there) * count / max(there, 1)) < 1


def test_tags_are_drawn_by_their_entity_types() -> None:
    plain = [Record(f"w{i}", None, 0, "n", ["O"], str(i)) for i in range(80)]
    named = [Record(f"x{i}", None, 0, "n", ["B-PER"], f"x{i}") for i in range(20)]
    splits, left = draw(plain + named, {"a": 50}, kind=head_kind("tags"), seed=0, purpose="p")
    assert sum(record.target == ["B-PER"] for record in splits["a"]) == 10
    assert len(left) == 50


NOISY = AugmentConfig(copies=3, dropout=0.3, swap=0.3, noise=0.9)
WORDS = st.lists(
    st.sampled_from(["The", "quick", "brown", "fox", "is", "not", "42", "years", "Old,", "isn't", "he?"]),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(words=WORDS)
def test_noise_keeps_tags_spans_negations_and_numbers(words: list[str]) -> None:
    text = " ".join(words)
    tagged = Record(text, None, 0, "n", ["O"] * len(words), "1")
    for noisy in augmented([tagged], NOISY, kind=head_kind("tags"), seed=0):
        assert [word.lower() for word in noisy.text.split()] == [word.lower() for word in words]
        assert noisy.target == tagged.target
    asked = Record(text, text, 0, "q", {"texts": [words[0]], "starts": [0]}, "1")
    for noisy in augmented([asked], NOISY, kind=head_kind("span"), seed=0):
        assert (noisy.pair, noisy.target) == (text, asked.target)
    plain = Record(text, text, 0, "c", "yes", "1")
    for noisy in augmented([plain], NOISY, kind=head_kind("classification"), seed=0):
        for side in (noisy.text, noisy.pair or ""):
            kept = Counter(word for word in side.lower().split() if word in ("not", "42", "isn't"))
            assert kept == Counter(word for word in text.lower().split() if word in ("not", "42", "isn't"))
            assert side.strip()


def test_noise_is_on_train_alone_seeded_and_leaks_nothing(tmp_path: Path) -> None:
    write(tmp_path / "raw", train=rows(100, "Some train row"), validation=rows(40, "Some validation row"))
    options = dataclasses.replace(SMALL, rows=RowsConfig(augment=NOISY))
    first, second = run(tmp_path, out="a", options=options), run(tmp_path, out="b", options=options)
    train = first.split("train", "mood")
    assert 40 < len(train) <= 160
    assert train == second.split("train", "mood")
    assert len({record.id for record in train}) == len(train)
    plain = run(tmp_path, out="c")
    assert train[:40] == plain.split("train", "mood")
    for name in PREPARED_SPLITS[1:]:
        assert first.split(name, "mood") == plain.split(name, "mood")


def test_the_truncation_report_counts_tokens() -> None:
    def tokenizer(texts: list[str], pairs: list[str] | None, *, truncation: bool) -> dict[str, list[list[int]]]:
        assert not truncation
        both = zip(texts, pairs or [""] * len(texts), strict=True)
        return {"input_ids": [[0] * (len(text.split()) + len(pair.split()) + 2) for text, pair in both]}

    records = [Record("w " * length, None, 0, "mood", "no", str(length)) for length in range(1, 101)]
    report = truncation_report(records, tokenizer, MOOD.model_copy(update={"max_tokens": 92}))
    assert report.truncated == pytest.approx(0.1)
    assert report.quantiles == {"p50": 52, "p90": 92, "p99": 101, "max": 102}
    assert report.to_json()["rows"] == 100
    with pytest.raises(DataError, match="no rows to measure"):
        truncation_report([], tokenizer, MOOD)


def test_a_folder_with_the_splits_names_of_before_is_read_and_reused(tmp_path: Path) -> None:
    write(tmp_path / "raw", train=rows(100, "train"), validation=rows(40, "validation"))
    made = run(tmp_path)
    rows_by_split = {name: made.split(name, "mood") for name in PREPARED_SPLITS}
    folder = tmp_path / "out" / "mood"
    for manifest in (folder / "manifest.json", tmp_path / "out" / "manifest.json"):
        text = manifest.read_text(encoding="utf-8")
        for name, before in NAMES_BEFORE.items():
            text = text.replace(f'"{name}": {{\n', f'"{before}": {{\n')
        manifest.write_text(text, encoding="utf-8")
    for name, before in NAMES_BEFORE.items():
        (folder / f"{name}.jsonl").rename(folder / f"{before}.jsonl")
    opened = load_prepared(tmp_path / "out", ["mood"])
    assert {name: opened.split(name, "mood") for name in PREPARED_SPLITS} == rows_by_split
    assert run(tmp_path).split("test", "mood") == rows_by_split["test"]
    assert not (folder / "test.jsonl").exists()
    (folder / "report.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"report\.jsonl was changed after it was prepared"):
        opened.split("test", "mood")


def test_digests_are_made_of_the_values_that_they_always_were() -> None:
    plain = PrepareOptions(rows=RowsConfig(filters=FilterConfig(max_chars=MAX_CHARS)))
    filters = FilterConfig(max_chars=MAX_CHARS, max_words=90, skip_bad=True)
    changed = PrepareOptions(router_rows=3, rows=RowsConfig(filters=filters, leaks="fail"))
    for options, digest in ((plain, "01f59469e8f7beaa"), (changed, "ccb3a8e4bc34d1fb")):
        values = json.dumps(options.to_json(), sort_keys=True)
        assert hashlib.sha256(values.encode()).hexdigest()[:16] == digest  # as commit b129b41 computes it
