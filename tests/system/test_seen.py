"""A system remembers the rows that it has learned from, and what scores it leaves them out and says so."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dynamorouter.data.prepare import load_prepared
from dynamorouter.errors import LibraryError
from dynamorouter.system.seen import SEEN, SeenRows
from dynamorouter.system.system import System
from support.builders import MOOD, make_rows
from support.tinyrun import TASKS, call, lines, refused, words


def mixed_rows(home: Path, root: Path) -> Path:
    """Write rows whose test split has 10 training rows of the run in ``finished`` before its own."""
    shutil.copytree(home / "rows", root)
    for task in TASKS:
        train, test = root / task / "train.jsonl", root / task / "test.jsonl"
        test.write_text("".join(train.read_text().splitlines(keepends=True)[:10]) + test.read_text())
    return root


def test_rows_are_known_by_their_text_and_pair(tmp_path: Path) -> None:
    rows = make_rows(MOOD, 12)
    seen = SeenRows()
    assert seen.unseen(rows) == rows
    seen.add("mood", rows[:3])
    seen.add("mood", rows[2:5])
    seen.add("other", rows[7:8])
    assert seen.unseen(rows) == [*rows[5:7], *rows[8:]]
    seen.save(tmp_path)
    again = SeenRows.load(tmp_path)
    assert again.unseen(rows) == seen.unseen(rows) and list(again.by_expert) == ["mood", "other"]
    assert [len(hashes) for hashes in again.by_expert.values()] == [5, 1]
    SeenRows().save(tmp_path)  # knows nothing, and so takes nothing away
    assert SeenRows.load(tmp_path).unseen(rows) == seen.unseen(rows)
    for damaged in ('{"format": 1, "rows": {"mood": "AAAA"}}', '{"format": 1, "rows": {"mood": 3}}', '{"format": 1}'):
        (tmp_path / SEEN).write_text(damaged)
        with pytest.raises(LibraryError, match=r"seen\.json is damaged"):
            SeenRows.load(tmp_path)


def test_a_run_remembers_all_rows_but_those_it_reports_on(finished: Path, tmp_path: Path) -> None:
    system = System.load(finished / "system")
    data = load_prepared(finished / "data", list(TASKS))
    for task in TASKS:
        for split in ("train", "router", "joint", "validation", "calibration"):
            assert system.seen.unseen(data.split(split, task)) == []
        test = data.split("test", task)
        assert system.seen.unseen(test) == test
    assert system.unknown_rows() == []
    more = [replace(row, text=f"{row.text} never {row.id}") for row in make_rows(MOOD, 8)]
    assert system.seen.unseen(more) == more
    system.fit_router({"mood": more})
    assert System.load(system.save(tmp_path / "saved")).seen.unseen(more) == []


def test_score_leaves_seen_rows_out_and_says_how_many(finished: Path, home: Path, tmp_path: Path) -> None:
    system, out = finished / "system", tmp_path / "scores.json"
    rows = mixed_rows(home, tmp_path / "rows")
    done = call("score", system, "--data", rows, "--split", "test", "--out", out)
    assert done.exit_code == 0, done.output
    scores = json.loads(out.read_text())
    left_out = scores["seen"]["left_out"]
    assert left_out.keys() == TASKS.keys() and scores["seen"]["unknown"] == []
    for task, row in scores["tasks"].items():
        assert 0 < left_out[task] <= 10 and row["n"] + left_out[task] == 22
        assert f"{task}: {left_out[task]} rows left out" in done.stdout
    kept = call("score", system, "--data", rows, "--split", "test", "--out", out, "--keep-seen")
    scores = json.loads(out.read_text())
    assert kept.exit_code == 0 and scores["seen"] == {"kept": True, "left_out": {}, "unknown": []}
    assert {row["n"] for row in scores["tasks"].values()} == {22}
    data = load_prepared(finished / "data", list(TASKS))
    train = tmp_path / "train" / "mood" / "test.jsonl"
    train.parent.mkdir(parents=True)
    native = [{"text": record.text, "label": record.target} for record in data.split("train", "mood")]
    train.write_text("".join(json.dumps(row) + "\n" for row in native))
    refused(call("score", system, "--data", tmp_path / "train", "--split", "test", "--out", out), "--keep-seen")


def test_an_old_system_does_not_know(finished: Path, home: Path, tmp_path: Path) -> None:
    system = Path(shutil.copytree(finished / "system", tmp_path / "old"))
    (system / SEEN).unlink()
    done = call("score", system, "--data", home / "rows", "--split", "test", "--out", tmp_path / "scores.json")
    assert "what mood, names, ask learned from is not known" in done.stdout
    assert json.loads((tmp_path / "scores.json").read_text())["seen"]["unknown"] == list(TASKS)


def test_a_comparison_scores_no_row_that_its_experts_saw(finished: Path, home: Path, tmp_path: Path) -> None:
    """Whatever the seed of the comparison: its rows are drawn anew, and the experts were there before."""
    rows, out = mixed_rows(home, tmp_path / "rows"), tmp_path / "out"
    system = finished / "system"
    few = ("bench.enabled=true", "joint.enabled=false", "bench.seeds=1", "bench.resamples=50", "bench.permutations=50")
    chosen = [*words(home, *few), f"data.root={rows}", "bench.arms=[oracle]", f"bench.system={system}", "seed=5"]
    studies = ("coefficients=[]", "densities=[]", "ranks=[]", "pairs=null", "layers=false", "unseen_rows=0")
    none = ["evaluation.report_rows=22", *(f"bench.studies.{setting}" for setting in studies)]
    done = call("bench", *chosen, *none, "--out", out)
    assert done.exit_code == 0, done.output
    seen = System.load(system).seen
    data = load_prepared(out / "seeds" / "5" / "data", list(TASKS))
    for row in lines(out / "rows.jsonl"):
        test = data.split("test", row["task"])
        assert row["n"] == len(seen.unseen(test)) < len(test) and row["seen_left_out"] == len(test) - row["n"]
    report = (out / "report.html").read_text()
    assert "Left out, since the experts have learned from them" in report
