"""The contract that every arm keeps, on a tiny system: it runs, its rows are whole, and a killed bench goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynamorouter.bench.arms.base import arm_names, arms, match_arms
from dynamorouter.bench.arms.baselines import Majority
from dynamorouter.bench.arms.lexical import word_features
from dynamorouter.bench.arms.merges import search_points
from dynamorouter.bench.experiment import Experiment
from dynamorouter.bench.results import ITEMS, ROWS, RowFile, row_digest, stable
from dynamorouter.bench.run import bench
from dynamorouter.bench.studies import STUDIES
from dynamorouter.config.schema import Config
from dynamorouter.data.prepare import load_prepared
from dynamorouter.runs.run import open_run
from dynamorouter.tasks.answer import Answer
from dynamorouter.testing import ArmContract
from support.shared import made_once
from support.tinyrun import call, contents, lines, refused, settings, words

TASKS = ["mood", "names", "ask"]
SMALL = (
    "bench.enabled=true",
    "joint.enabled=false",
    "experts.epochs=1",
    "router.epochs=3",
    "bench.seeds=1",
    "bench.evaluations=2",
    "bench.tune_rows=4",
    "bench.resamples=50",
    "bench.permutations=50",
    "bench.arms=['*','-tuned/*',tuned/ties,tuned/regmean,tuned/fisher,tuned/lorahub,tuned/adamerging]",
    "bench.studies.coefficients=[0.0,1.0]",
    "bench.studies.densities=[0.5]",
    "bench.studies.ranks=[1,2]",
    "bench.studies.unseen_rows=6",
)
ROW_KEYS = {
    "arm", "task", "seed", "told", "metric", "n", "value", "metrics", "parameters", "bytes",
    "work", "train_rows", "evaluations", "select", "options", "notes",
    "seconds", "peak_memory_mb", "config_hash", "experts", "data_fingerprint", "versions", "items",
}  # fmt: skip
"""What every row of rows.jsonl holds."""


def small(home: Path, *more: str) -> Config:
    """Return the settings of a tiny comparison."""
    return settings(home, *SMALL, *more)


def compare(config: Config, out: Path) -> Path:
    """Do a whole comparison in a new folder and return the folder."""
    open_run(config, out, resume=False)
    bench(config, out)
    return out


@pytest.fixture(scope="module")
def compared(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished tiny comparison of all arms, which no test may change."""
    return made_once(tmp_path_factory, "compared", lambda folder: compare(small(home), folder / "out")) / "out"


def test_every_arm_has_whole_rows(compared: Path) -> None:
    rows = list(RowFile(compared / ROWS))
    there, every = {row["arm"] for row in rows}, arm_names(TASKS)
    assert there == {name for name in every if not name.startswith("tuned/") or name in there}
    assert {name.partition("/")[0] for name in every} == {name.partition("/")[0] for name in there}
    for row in rows:
        assert set(row) == ROW_KEYS, row["arm"]
        assert 0.0 <= row["value"] <= 1.0 and row["n"] == 12
        assert (compared / row["items"]).is_file()


@pytest.mark.parametrize("name", ["majority", "router", "merge", "words"])
def test_arms_keep_the_contract_on_an_experiment(compared: Path, home: Path, name: str) -> None:
    first = compared / "seeds" / "0"
    experiment = Experiment.open(small(home), first, load_prepared(first / "data", TASKS))
    arm = arms.get(name)
    few = {"variants": classmethod(lambda cls, tasks: arm.variants(tasks)[:1])}
    contract = ArmContract.of(arm=type(arm.__name__, (arm,), few), experiment=experiment)
    assert contract.check() == ArmContract.laws()


class Short(Majority):
    """Forgets the last row."""

    def answer(self, experiment: Experiment, task: str) -> list[Answer | None]:
        return super().answer(experiment, task)[:-1]


def test_the_contract_finds_an_arm_that_leaves_a_row_out(compared: Path, home: Path) -> None:
    first = compared / "seeds" / "0"
    experiment = Experiment.open(small(home), first, load_prepared(first / "data", TASKS))
    with pytest.raises(AssertionError, match="not one answer for each row"):
        ArmContract.of(arm=Short, experiment=experiment).check()


FEW = ("bench.arms=[majority,base,router/knn,tuned/ties,joint]", "bench.seeds=2")
NO_STUDIES = (
    "bench.studies.coefficients=[]",
    "bench.studies.densities=[]",
    "bench.studies.ranks=[]",
    "bench.studies.pairs=null",
    "bench.studies.layers=false",
    "bench.studies.unseen_rows=0",
)


def values(out: Path, *arms: str) -> dict[tuple[str, str], float]:
    """Return the values of some arms' rows."""
    return {(row["arm"], row["task"]): row["value"] for row in RowFile(out / ROWS) if row["arm"] in arms}


def test_arms_that_are_the_same_thing_score_the_same(compared: Path) -> None:
    rows = values(compared, "oracle", "mixture", "merge/linear", *(f"expert/{task}" for task in TASKS))
    for task in TASKS:
        assert rows["oracle", task] == rows[f"expert/{task}", task]  # the diagonal of the matrix
        assert rows["mixture", task] == pytest.approx(rows["merge/linear", task])  # the mean of the changes


def test_studies_are_made_once_and_agree_with_the_arms(compared: Path) -> None:
    rows = lines(compared / STUDIES)
    kinds = [row["study"] for row in rows]
    assert kinds.count("alone") == 3 and kinds.count("pair") == 3 and kinds.count("unseen") == 3
    assert kinds.count("coefficient") == 2 and kinds.count("rank") == 2 and kinds.count("layers") == 12
    for row in rows:
        if row["study"] == "layers":
            overlap = np.array(row["left"])
            assert np.allclose(np.diag(overlap), 1) and np.allclose(overlap, overlap.T)
            assert overlap.min() >= 0 and overlap.max() <= 1 + 1e-9
        if row["study"] == "unseen":
            assert row["task"] not in row["route"] and sum(row["route"].values()) == pytest.approx(1, abs=1e-3)


class KilledError(Exception):
    """Stands for a process that is killed."""


@pytest.mark.e2e
def test_a_killed_bench_goes_on_as_if_nothing_had_happened(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(home, *FEW, *NO_STUDIES)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    compare(config, whole)

    open_run(config, broken, resume=False)
    append, count = RowFile.append, iter(range(10**6))

    def dies(self: RowFile, row: dict[str, Any]) -> None:
        if next(count) % 11 == 10:
            with self.path.open("ab") as handle:
                handle.write(b'{"arm": "cut o')
            raise KilledError
        append(self, row)

    monkeypatch.setattr(RowFile, "append", dies)
    kills = 0
    while True:
        try:
            bench(config, broken)
            break
        except KilledError:
            kills += 1
    assert kills >= 2
    assert [stable(row) for row in lines(broken / ROWS)] == [stable(row) for row in lines(whole / ROWS)]
    assert contents(broken / ITEMS) == contents(whole / ITEMS)


@pytest.mark.e2e
def test_a_comparison_grows_by_arms_and_seeds(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    chosen = words(home, *SMALL, *NO_STUDIES)
    assert call("bench", *chosen, "bench.arms=[base,oracle]", "--out", out).exit_code == 0
    before = (out / ROWS).read_bytes()
    more = "bench.arms=[base,oracle,majority]", "bench.seeds=2"
    refused(call("bench", *more, "experts.rank=3", "--out", out, "--resume"))  # would be other experts
    assert call("bench", *more, "--out", out, "--resume").exit_code == 0
    found = json.loads((out / "bench.json").read_text())
    assert (out / ROWS).read_bytes().startswith(before)
    assert found["seeds"] == [0, 1] and {arm["arm"] for arm in found["arms"]} == {"base", "oracle", "majority"}
    assert len(lines(out / ROWS)) == 3 * 2 * len(found["tasks"])
    assert call("bench", "bench.arms=[oracle]", "bench.seeds=1", "--out", out, "--resume").exit_code == 0
    assert [arm["arm"] for arm in json.loads((out / "bench.json").read_text())["arms"]] == ["oracle"]


def test_the_hash_of_rows_changes_with_what_changes_rows_alone(home: Path) -> None:
    config = small(home)
    same = small(home, "bench.arms=[base]", "bench.seeds=5", "bench.permutations=9", "tracking.tensorboard=true")
    assert row_digest(same) == row_digest(config)
    for other in ("experts.rank=3", "bench.resamples=51", "bench.tune_rows=5", "seed=3"):
        assert row_digest(small(home, other)) != row_digest(config)


@pytest.mark.e2e
def test_experts_that_are_there_are_compared_as_they_are(compared: Path, home: Path, tmp_path: Path) -> None:
    system, out = compared / "seeds" / "0" / "system", tmp_path / "out"
    chosen = words(
        home, *SMALL, *NO_STUDIES, "bench.arms=[base,oracle,merge/linear,router/own]", f"bench.system={system}"
    )
    before = contents(system)
    assert call("bench", *chosen, "--out", out).exit_code == 0
    assert contents(system) == before and not (out / "seeds" / "0" / "phases" / "experts").exists()
    old = {(row["arm"], row["task"]): row for row in lines(compared / ROWS)}
    for row in lines(out / ROWS):
        there = old[row["arm"], row["task"]]
        assert (row["value"], row["experts"]) == (there["value"], there["experts"])
    for wrong, word in (
        ("bench.system=nowhere", "no saved system"),
        (f"bench.system={system / 'experts'}", "no saved system"),
    ):
        assert word in refused(call("bench", *chosen[:-1], wrong, "--out", tmp_path / "no"))
    assert "bench.seeds=1" in refused(call("bench", *chosen, "bench.seeds=2", "--out", tmp_path / "no"))


def test_all_mistakes_are_named_at_once(home: Path, tmp_path: Path) -> None:
    wrong = ("bench.arms=[merge/tyes,oracel,router/*]", "bench.seeds=0", "bench.evalutions=3", "experts.rank=0")
    said = refused(call("bench", *words(home, *wrong), "--out", tmp_path / "out"))
    for piece in (
        "merge/tyes",
        "did you mean 'merge/ties'",
        "oracel",
        "bench.seeds",
        "bench.evalutions",
        "experts.rank",
    ):
        assert piece in said
    assert not (tmp_path / "out").exists()
    pairs = ("joint.enabled=false", "bench.studies.pairs=lorahub")
    assert "need no data" in refused(call("bench", *words(home, *pairs), "--out", tmp_path / "out"))


@pytest.mark.e2e
def test_the_command_line_makes_the_reports_and_resumes(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    chosen = words(home, *SMALL, "bench.arms=[majority,base,oracle]", *NO_STUDIES)
    done = call("bench", *chosen, "--out", out)
    assert done.exit_code == 0, done.output
    assert "oracle" in done.stdout and (out / "report.html").is_file() and (out / "report.md").is_file()
    before = (out / ROWS).read_bytes()
    refused(call("bench", *chosen, "--out", out), "--resume")
    assert call("bench", "--out", out, "--resume").exit_code == 0
    assert call("run", *chosen, "--out", out, "--resume").exit_code == 0  # a recipe with bench.enabled is the same
    assert (out / ROWS).read_bytes() == before


def test_patterns_name_arms() -> None:
    names, mistakes = match_arms(["merge/t*", "oracle", "-merge/ties*"], TASKS)
    assert "oracle" in names and "merge/tsv" in names and "merge/ties" not in names and not mistakes
    assert match_arms(["nobody"], TASKS)[1][0].startswith("no arm 'nobody'")
    assert {f"expert/{task}" for task in TASKS} <= set(arm_names(TASKS))


def test_every_method_is_tuned_with_the_same_budget() -> None:
    for method in ("ties", "linear", "regmean"):
        points = search_points(method, 6, seed=1)
        assert len(points) == 6 and points[0] == {}
        assert all(0.25 <= point["factor"] <= 4.0 for point in points[1:])
        assert points == search_points(method, 6, seed=1) != search_points(method, 6, seed=2)
    assert all("density" in point for point in search_points("ties", 6, seed=0)[1:])


def test_words_are_described_by_form_and_neighbours() -> None:
    first, second = word_features(["Anna", "won"])
    assert first["form=Aa"] == 1.0 and first["before=<s>"] == 1.0 and first["after=won"] == 1.0
    assert second["before=anna"] == 1.0 and second["after=</s>"] == 1.0 and "first" not in second
