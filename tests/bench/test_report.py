"""Summaries and reports: measures by hand, choices on other rows, one file that asks nothing of the network."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynamorouter.bench.report.figures import losses, pareto_front
from dynamorouter.bench.report.report import findings_of, report, write_reports
from dynamorouter.bench.report.summary import best_arm, recovered, summarise
from dynamorouter.bench.results import (
    ITEMS,
    ROWS,
    RowFile,
    example_path,
    read_example_records,
    row_digest,
    write_example_records,
)
from dynamorouter.config.schema import Config
from dynamorouter.errors import DataError
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.record import Record
from support.tinyrun import settings

RIGHT = {  # share of ten rows that are right, by arm and seed
    "oracle": (0.9, 0.9),
    "base": (0.4, 0.4),
    "router/own": (0.9, 0.8),
    "merge/factor_average": (0.4, 0.4),
    "merge/linear": (0.7, 0.7),
    "merge/ties": (0.6, 0.6),
    "tuned/ties": (0.8, 0.8),
    "expert/mood": (0.9, 0.9),
}
SELECT = {"merge/linear": 0.5, "merge/ties": 0.9, "merge/factor_average": 0.1, "tuned/ties": 0.7}


def made(home: Path, out: Path) -> Config:
    """Write rows of two tasks as a comparison would, and return its settings."""
    config = settings(
        home, "bench.enabled=true", "joint.enabled=false", "task=[mood,ask]", "bench.resamples=200", "bench.seeds=2"
    )
    file = RowFile(out / ROWS)
    for arm, shares in RIGHT.items():
        for seed, share in enumerate(shares):
            for task in ("mood", "ask"):
                file.append(row(config, out, arm, task, seed, share))
    return config


def row(config: Config, out: Path, arm: str, task: str, seed: int, share: float) -> dict[str, Any]:
    """Write the items of one row, and return the row."""
    records = [Record("a film", None, 0, task, "good", str(i)) for i in range(10)]
    numbers = np.array([[float(i < round(10 * share)), 1.0] for i in range(10)])
    place = example_path(arm, task, seed)
    write_example_records(out / place, records, [Answer("classification", "good", 1.0)] * 10, numbers)
    router = {
        "accuracy": 0.9,
        "macro_f1": 0.9,
        "ece": 0.1,
        "tasks": ["mood", "ask"],
        "confusion": [[9, 1], [1, 9]],
        "reliability": [{"confidence": 0.8, "accuracy": 0.9, "rows": 20}],
    }
    return {
        "arm": arm,
        "task": task,
        "seed": seed,
        "told": not arm.startswith("router"),
        "metric": "accuracy" if task == "mood" else "squad_f1",
        "n": 10,
        "value": share,
        "metrics": {},
        "parameters": 100,
        "bytes": 400,
        "work": 1.0,
        "train_rows": 5 if arm.startswith("tuned") else 0,
        "evaluations": 0,
        "select": SELECT.get(arm),
        "options": {},
        "notes": {"router": router} if arm.startswith("router") else {},
        "seconds": {"fit": 1.0, "prepare": 0.5, "answer": 0.1},
        "peak_memory_mb": 1.0,
        "config_hash": row_digest(config),
        "experts": {},
        "data_fingerprint": "0" * 16,
        "versions": {"torch": "2"},
        "items": place,
    }


def test_measures_by_hand(home: Path, tmp_path: Path) -> None:
    found = summarise(made(home, tmp_path), tmp_path)
    by_name = {arm["arm"]: arm for arm in found["arms"]}
    routed = by_name["router/own"]
    assert routed["mean"]["value"] == pytest.approx(0.85)
    assert routed["tasks"]["mood"]["seeds"] == [0.9, 0.8]
    assert routed["relative"] == pytest.approx(0.85 / 0.9)
    assert routed["gap"] == pytest.approx((0.85 - 0.4) / 0.5)
    assert routed["fit_seconds"] == pytest.approx(1.0 + 2 * 0.5)  # once, and then for each of two tasks
    assert routed["worst"]["value"] == pytest.approx(0.85 / 0.9)
    assert by_name["base"]["gap"] == pytest.approx(0.0)
    assert found["arms"][0]["arm"] in ("oracle", "expert/mood")
    assert found["matrix"] == {"mood": {"mood": pytest.approx(0.9), "ask": pytest.approx(0.9)}}


def test_a_task_without_gain_cannot_turn_the_gap_of_an_arm_above_the_base() -> None:
    low, top = np.array([0.10, 0.500]), np.array([0.90, 0.501])  # the second task's expert gains next to nothing
    merge = np.array([0.80, 0.490])
    assert float(np.mean((merge - low) / (top - low))) < -4  # what a mean of shares makes of it
    share = recovered(float(merge.mean()), float(low.mean()), float(top.mean()))
    assert share == pytest.approx((merge - low).sum() / (top - low).sum())
    assert share is not None and share > 0.8
    assert recovered(0.5, 0.4, 0.4) is None and recovered(0.5, 0.4, 0.3) is None  # there is no way up


def test_the_gap_of_an_arm_is_that_of_its_mean(home: Path, tmp_path: Path) -> None:
    config = made(home, tmp_path)
    for path, right in (("base", 9), ("merge/linear", 8)):  # on one task the base is as good as the expert
        for seed in (0, 1):
            numbers = np.array([[float(i < right), 1.0] for i in range(10)])
            records = [Record("a film", None, 0, "ask", "good", str(i)) for i in range(10)]
            place = tmp_path / example_path(path, "ask", seed)
            write_example_records(place, records, [Answer("classification", "good", 1.0)] * 10, numbers)
    (linear,) = (arm for arm in summarise(config, tmp_path)["arms"] if arm["arm"] == "merge/linear")
    assert linear["tasks"]["ask"]["gap"] is None
    assert linear["gap"] == pytest.approx((0.75 - 0.65) / (0.90 - 0.65))


def test_the_best_merge_is_chosen_on_select_rows_alone(home: Path, tmp_path: Path) -> None:
    found = summarise(made(home, tmp_path), tmp_path)
    assert found["best"] == {"merge": "merge/ties", "tuned": "tuned/ties"}  # merge/linear is better on test rows
    assert best_arm([], "merge/") is None
    pairs = {(test["first"], test["second"]) for test in found["comparisons"]["router"]["overall"]}
    assert ("router/own", "merge/ties") in pairs and ("router/own", "oracle") in pairs
    said = " ".join(findings_of(found))
    assert "merge/ties" in said and "94.44 % of the oracle" in said


def test_arms_that_lack_a_seed_are_left_out_of_the_summary(home: Path, tmp_path: Path) -> None:
    config = made(home, tmp_path)
    RowFile(tmp_path / ROWS).append(row(config, tmp_path, "joint", "mood", 0, 0.9))
    assert "joint" not in {arm["arm"] for arm in summarise(config, tmp_path)["arms"]}


def test_items_in_another_order_are_refused(home: Path, tmp_path: Path) -> None:
    config = made(home, tmp_path)
    path = tmp_path / example_path("merge/ties", "mood", 1)
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    with pytest.raises(DataError, match="other items than the arms before it"):
        summarise(config, tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_example_records(path)


def test_reports_are_whole_and_ask_nothing_of_the_network(home: Path, tmp_path: Path) -> None:
    config = made(home, tmp_path)
    write_reports(config, tmp_path)
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    sources = re.findall(r'(?:src|href|url\()\s*=?\s*["\']?([^"\'\s>)]+)', page)
    assert sources and all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert "<script" not in page and "@import" not in page
    for data in re.findall(r"base64,([A-Za-z0-9+/=]+)", page):
        svg = base64.b64decode(data).decode()
        links = re.findall(r'(?:href|src)="([^"]+)"', svg)
        assert all(link.startswith(("#", "data:image/png;base64,")) for link in links), links
    for arm in RIGHT:
        assert arm in page and arm in text
    for name in re.findall(r"\]\((pictures/[^)]+)\)", text):
        assert (tmp_path / name).is_file()
    saved = json.loads((tmp_path / "bench.json").read_text())
    assert saved["studies"] == [] and saved["recipe"] == "tiny"
    assert [type(block) for block in report(saved)] == [type(block) for block in report(summarised(config, tmp_path))]


def summarised(config: Config, out: Path) -> dict[str, Any]:
    """Return a summary without studies."""
    return {**summarise(config, out), "studies": []}


@pytest.mark.e2e
def test_the_same_rows_make_the_same_report(home: Path, tmp_path: Path) -> None:
    config = made(home, tmp_path)
    write_reports(config, tmp_path)
    first = {name: (tmp_path / name).read_bytes() for name in ("bench.json", "report.md", "report.html")}
    write_reports(config, tmp_path)
    assert first == {name: (tmp_path / name).read_bytes() for name in first}


def test_front_by_hand() -> None:
    points = [(1.0, 0.5), (2.0, 0.4), (2.0, 0.7), (3.0, 0.7), (0.5, 0.1)]
    assert pareto_front(points) == [4, 0, 2]


def test_losses_of_pairs_by_hand() -> None:
    rows = [
        {"study": "alone", "tasks": ["a"], "scores": {"a": 0.8}},
        {"study": "alone", "tasks": ["b"], "scores": {"b": 0.5}},
        {"study": "pair", "tasks": ["a", "b"], "scores": {"a": 0.6, "b": 0.5}},
    ]
    table = losses(rows, ["a", "b"])
    assert table[0][1] == pytest.approx(0.25) and table[1][0] == pytest.approx(0.0)
    assert np.isnan(table[0][0])


def test_a_line_that_was_cut_off_is_removed_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / ROWS
    path.write_bytes(b'{"arm": "a", "task": "t"}\n{"arm": "b", "ta')
    file = RowFile(path)
    assert file.has(arm="a", task="t") and not file.has(arm="b")
    assert path.read_bytes() == b'{"arm": "a", "task": "t"}\n'
    file.append({"arm": "c"})
    assert [row["arm"] for row in RowFile(path)] == ["a", "c"]
    path.write_bytes(b'{"arm": \n{"arm": "b"}\n')
    with pytest.raises(DataError, match=r"line 1: not valid JSON.*remove the line and resume"):
        RowFile(path)
    assert ITEMS in example_path("merge/ties", "t", 0)
