"""Every kind of bad input through the command line: one clear message, exit status 2, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamorouter.errors import DynamoRouterError
from dynamorouter.runs import phases as pipeline
from dynamorouter.system.system import System
from dynamorouter.utils.files import read_json, write_tensors
from support.tinyrun import call, contents, lines, refused, settings, weights, words, write_lines


@pytest.fixture
def system(finished: Path) -> Path:
    """Return a finished run's system, which no test may change."""
    return finished / "system"


@pytest.fixture
def rows(home: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny tasks' rows."""
    return Path(shutil.copytree(home / "rows", tmp_path / "rows"))


TEXTS = {
    "empty": ("", "text 1 is empty"),
    "blank": (" \t\n", "text 1 is empty"),
    "100,000 characters": ("word " * 20_000, "text 1 has 100000 characters; at most 50000"),
    "null": ("a\x00b", "U+0000, at position 1"),
    "escape": ("\x1b[31mred", "U+001B, at position 0"),
    "delete": ("ab\x7f", "U+007F"),
    "half a surrogate pair": ("a\ud83d", "U+D83D"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_bad_texts(system: Path, tmp_path: Path, case: str) -> None:
    text, said = TEXTS[case]
    refused(call("predict", system, text), said)
    refused(call("predict", system, "a good one", "--pair", text), said.replace("text 1", "pair 1"))
    path = write_lines(tmp_path / "in.jsonl", [{"text": "a film"}, {"text": text}, {"text": "the team won"}])
    refused(call("predict", system, "--file", path), "line 2", said, "--skip-bad")
    done = call("predict", system, "--file", path, "--json", "--skip-bad")
    assert done.exit_code == 0 and "1 bad rows skipped" in done.stderr and "line 2" in done.stderr
    assert [json.loads(line)["line"] for line in done.stdout.splitlines()] == [1, 3]


def test_line_ends_of_every_system_are_texts(system: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"text": "the film\\r\\nwas dull\\n"}\r\n\r\n{"text": "team\\twon"}\r\n')
    done = call("predict", system, "--file", path, "--json")
    assert done.exit_code == 0, done.output
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["text"] for row in found] == ["the film\r\nwas dull\n", "team\twon"]
    assert all("\r" not in line for line in call("predict", system, "the film\r\nwas dull").stdout.splitlines())


LINES: dict[str, tuple[Any, str]] = {
    "cut off": ('{"text": "the', "line 2: not valid JSON"),
    "no object": ("[1]", "line 2: holds a JSON list"),
    "not UTF-8": (b'{"text": "caf\xe9"}', "line 2: byte 13 (0xe9) is not valid UTF-8"),
    "missing column": ({"txt": "a"}, "line 2: has no 'text' (did you mean 'text'?)"),
    "a number": ({"text": 3}, "line 2: 'text' is a int"),
}


@pytest.mark.parametrize("case", LINES)
def test_one_broken_line(system: Path, tmp_path: Path, case: str) -> None:
    bad, said = LINES[case]
    path = write_lines(tmp_path / "in.jsonl", [{"text": "a film"}, bad, {"text": "the team won"}])
    refused(call("predict", system, "--file", path), said, "--skip-bad")
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    refused(call("predict", system, "--file", path, "--out", out), said)
    assert out.read_text() == "old" and len(list(tmp_path.iterdir())) == 2
    done = call("predict", system, "--file", path, "--out", out, "--skip-bad")
    assert done.exit_code == 0 and "1 bad rows skipped" in done.stderr
    assert [row["line"] for row in lines(out)] == [1, 3]


def test_files_that_are_not_there(system: Path, tmp_path: Path) -> None:
    refused(call("predict", system, "--file", tmp_path / "no.jsonl"), "cannot read", "no.jsonl")
    refused(call("predict", system, "--file", tmp_path), "cannot read", "directory")
    refused(call("predict", tmp_path, "a film"), "no saved system", "system.json")
    refused(call("predict", system, "a film", "--task", "../x"), "no expert for task '../x'")
    refused(call("predict", system, "a film", "--task", "moods"), "did you mean 'mood'")


def spoil(rows: Path, row: Any) -> None:
    path = rows / "mood" / "train.jsonl"
    whole = path.read_bytes().splitlines()
    whole[4] = row if isinstance(row, bytes) else json.dumps(row).encode()
    path.write_bytes(b"\n".join(whole) + b"\n")


ROWS: dict[str, tuple[Any, str]] = {
    "broken": (b'{"text": "cut', "line 5: not valid JSON"),
    "not UTF-8": (b'{"text": "\xe9", "label": "bad"}', "line 5: byte 10 (0xe9) is not valid UTF-8"),
    "missing column": ({"txt": "the film", "label": "bad"}, "row 5: column text missing"),
}


@pytest.mark.parametrize("case", ROWS)
def test_broken_rows_of_a_run(home: Path, rows: Path, tmp_path: Path, case: str) -> None:
    bad, said = ROWS[case]
    spoil(rows, bad)
    line = words(home, f"data.root={rows}")
    refused(call("prepare", *line, "--out", tmp_path / "run"), said, "--skip-bad")
    done = call("prepare", *line, "--skip-bad", "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "mood, train: " in done.stderr and "left out: 1 bad" in done.stderr
    counts = read_json(tmp_path / "run" / "data" / "manifest.json")["tasks"]["mood"]["counts"]["train"]
    assert 1 in counts.values()


def test_unknown_labels_of_a_run_stop_it_or_are_counted(home: Path, rows: Path, tmp_path: Path) -> None:
    spoil(rows, {"text": "the film", "label": "goood"})
    line = ("prepare", *words(home, f"data.root={rows}"))
    out = tmp_path / "run"
    refused(call(*line, "--out", out), "'goood' in 1 rows (did you mean 'good'?)", "data.filters.unknown_labels=drop")
    done = call(*line, "data.filters.unknown_labels=drop", "--out", out)
    assert done.exit_code == 0, done.output
    assert "left out: 1 unknown label" in done.stderr
    manifest = read_json(out / "data" / "manifest.json")
    assert manifest["tasks"]["mood"]["counts"]["train"]["unknown_label"] == 1


@pytest.mark.parametrize(
    "resume", [pytest.param((), id="run"), pytest.param(("--resume",), id="resume", marks=pytest.mark.e2e)]
)
def test_a_run_that_failed_before_training_begins_again(
    home: Path, rows: Path, tmp_path: Path, resume: tuple[str, ...]
) -> None:
    out, line = tmp_path / "run", ("prepare", *words(home, f"data.root={rows}"))
    sound = (rows / "mood" / "train.jsonl").read_bytes()
    spoil(rows, {"text": "the film", "label": "goood"})
    refused(call(*line, "--out", out), "'goood'")
    refused(call(*line, "seed=5", "--out", out, *resume), "'goood'")
    (rows / "mood" / "train.jsonl").write_bytes(sound)
    done = call(*line, "seed=6", "--out", out, *resume)
    assert done.exit_code == 0, done.output
    assert "seed: 6" in (out / "config.yaml").read_text()
    refused(call(*line, "seed=7", "--out", out, "--resume"), "seed was 6 and is 7")
    refused(call(*line, "seed=6", "--out", out), "an unfinished run")


@pytest.mark.e2e
def test_a_comparison_that_failed_before_training_begins_again(home: Path, rows: Path, tmp_path: Path) -> None:
    out, line = tmp_path / "bench", ("bench", *words(home, f"data.root={rows}", "joint.enabled=false"))
    spoil(rows, {"text": "the film", "label": "goood"})
    for more in (("seed=3",), ("seed=4",), ("seed=5", "--resume")):
        refused(call(*line, *more, "--out", out), "'goood' in 1 rows")
    assert "seed: 5" in (out / "config.yaml").read_text()


def test_a_corrected_source_is_read_again_until_something_is_trained(home: Path, rows: Path, tmp_path: Path) -> None:
    out, line = tmp_path / "run", ("prepare", *words(home, f"data.root={rows}"))
    assert call(*line, "--out", out).exit_code == 0
    before, log = contents(out / "data"), (out / "log.jsonl").read_bytes()
    assert call(*line, "--out", out, "--resume").exit_code == 0
    assert contents(out / "data") == before and (out / "log.jsonl").read_bytes() == log
    spoil(rows, {"text": " ", "label": "good"})
    (out / "phases").mkdir()
    assert call("prepare", "--out", out, "--resume").exit_code == 0
    assert contents(out / "data") == before
    (out / "phases").rmdir()
    assert call("prepare", "--out", out, "--resume").exit_code == 0
    assert contents(out / "data") != before
    assert [line["task"] for line in lines(out / "log.jsonl")] == ["mood", "names", "ask"]
    assert (out / "log.jsonl").read_bytes() != log


def test_places_that_are_not_there_are_found_before_any_work(home: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    refused(call("run", *words(home, f"data.root={tmp_path / 'no'}"), "--out", out), "data.root: there is no folder")
    shutil.rmtree(rows / "mood")
    shutil.rmtree(rows / "ask")
    refused(call("run", *words(home, f"data.root={rows}"), "--out", out), "task 'mood' has no folder", "task 'ask'")
    refused(call("run", "tinny", *words(home)[1:], "--out", out), "unknown choice 'tinny' (did you mean 'tiny'?)")
    said = refused(
        call("run", *words(home, "experts.rnk=2", "seed=x", "router=mpl", "task.moods.version=2"), "--out", out),
        "4 settings are wrong",
        "experts.rank",
        "seed: got 'x'",
        "did you mean 'mlp'",
        "task 'moods' is not chosen",
    )
    assert len(said.splitlines()) == 5
    assert not out.exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[2] ^= 0xFF
    path.write_bytes(bytes(data))


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "truncated adapter": ("experts/mood/adapter_model.safetensors", cut, "truncated or corrupt"),
    "corrupt head": ("experts/names/head.safetensors", flip, "truncated or corrupt"),
    "empty file": ("experts/ask/head.safetensors", lambda path: path.write_bytes(b""), "truncated or corrupt"),
    "missing head": ("experts/mood/head.safetensors", Path.unlink, "there is no file"),
    "truncated router": ("router/router.safetensors", cut, "router"),
    "missing router": ("router/router.json", Path.unlink, "router"),
    "broken card": ("experts/mood/card.json", lambda path: path.write_text("{"), "is not JSON"),
    "broken manifest": ("system.json", lambda path: path.write_text("[1]"), "system.json"),
    "other keys": ("system.json", lambda path: path.write_text('{"format": 1}'), "system.json"),
    "other card": ("experts/mood/card.json", lambda path: path.write_text('{"format": 1}'), "card.json"),
    "other format": ("system.json", lambda path: path.write_text('{"format": 99}'), "format 99"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_systems(system: Path, tmp_path: Path, case: str) -> None:
    name, damage, said = DAMAGE[case]
    copy = Path(shutil.copytree(system, tmp_path / "system"))
    damage(copy / name)
    refused(call("predict", copy, "a film"), said)


def test_a_damaged_checkpoint_is_named(home: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out, ignore=shutil.ignore_patterns("joint", "system", "report.json"))
    shutil.copytree(finished / "data", out / "data", dirs_exist_ok=True)
    (out / "phases" / "joint.0.checkpoint").write_bytes(b"1234")
    refused(call("run", "--out", out, "--resume"), "joint.0.checkpoint", "not a whole safetensors file")


def test_changed_rows_of_a_run_are_noticed(finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    (out / "report.json").unlink()
    with (out / "data" / "mood" / "test.jsonl").open("a") as file:
        file.write("{}\n")
    refused(call("run", "--out", out, "--resume"), "test.jsonl was changed")


def test_places_that_cannot_be_written(home: Path, system: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    under = tmp_path / "file" / "under"
    refused(call("run", *words(home), "--out", under / "run"), "Not a directory")
    refused(call("predict", system, "a film", "--out", under / "out.jsonl"), "Not a directory")
    refused(call("score", system, "--data", rows, "--out", under / "scores.json"), "Not a directory")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a file system of 256 KiB, where one may be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = shutil.which("mount") and os.geteuid() == 0
    if (
        not made
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(home: Path, finished: Path, rows: Path, full_disk: Path) -> None:
    out = full_disk / "run"
    refused(call("run", *words(home), "--out", out), "No space left on device")
    assert not list(full_disk.rglob("*.tmp"))
    scores = full_disk / "scores.json"
    scores.write_text("old")
    (full_disk / "rest").write_bytes(b"")
    with pytest.raises(OSError, match="No space"), (full_disk / "rest").open("wb", buffering=0) as file:
        while file.write(b"0" * 512) == 512:
            pass
        raise OSError("No space")
    refused(
        call("score", finished / "system", "--data", rows, "--keep-seen", "--out", scores), "No space left on device"
    )
    assert scores.read_text() == "old"


def test_a_disk_that_fills_up_while_tensors_are_written(full_disk: Path) -> None:
    import torch

    path = full_disk / "some.safetensors"
    write_tensors(path, {"a": torch.zeros(10)})
    before = path.read_bytes()
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_tensors(path, {"a": torch.zeros(10**6)})
    assert caught.value.errno == 28
    assert contents(full_disk) == {"some.safetensors": before}


@pytest.mark.e2e
def test_a_disk_that_is_full_for_a_while_costs_nothing(
    home: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        calls: list[Path] = []

        def full(path: Path, *args: object, **kwargs: object) -> None:
            calls.append(path)
            if len(calls) > 6:
                raise OSError(28, "No space left on device", str(path))
            write_tensors(path, *args, **kwargs)  # type: ignore[arg-type]

        patch.setattr("dynamorouter.training.loop.write_tensors", full)
        refused(call("run", *words(home), "--out", out), "No space left on device", "kept")
    assert call("run", "--out", out, "--resume").exit_code == 0
    assert weights(out / "system") == weights(finished / "system")
    assert lines(out / "log.jsonl") == lines(finished / "log.jsonl")


def test_a_loss_that_is_no_number(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    rate = "task.names.hyper.learning_rate=1e30"
    said = refused(call("run", *words(home, rate), "--out", out), "task 'names'", "at step ", "learning_rate")
    assert "loss nan" in said or "loss inf" in said or "gradient norm" in said
    checkpoint = out / "phases" / "experts.0.checkpoint"
    assert checkpoint.is_file() and str(checkpoint) in said
    assert pipeline._last_round(checkpoint) >= 1
    assert not (out / "system").exists()


def test_a_loss_that_is_no_number_keeps_an_older_system(home: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out, ignore=shutil.ignore_patterns("report.json"))
    shutil.copytree(finished / "data", out / "data", dirs_exist_ok=True)
    shutil.rmtree(out / "phases" / "joint")
    before = contents(out / "system")
    with pytest.raises(DynamoRouterError, match="at step"):
        pipeline.fit_joint(settings(home, "joint.learning_rate=1e30", "joint.epochs=3"), out)
    assert contents(out / "system") == before
    assert System.load(out / "system").names == ["mood", "names", "ask"]
