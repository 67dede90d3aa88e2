"""Runs from files to a saved system: what they leave behind, in one go, phase by phase, or killed and resumed."""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from dynamorouter.config.compose import load
from dynamorouter.config.files import CONF
from dynamorouter.errors import ConfigError, LibraryError, RouterError
from dynamorouter.routing.registry import routers
from dynamorouter.runs import phases as pipeline
from dynamorouter.runs.run import open_run
from dynamorouter.system.router import check_router
from dynamorouter.system.system import System
from dynamorouter.tasks.record import Record
from dynamorouter.utils.files import read_json
from support.tinyrun import call, contents, lines, refused, settings, weights, words


def scores(out: Path) -> dict[str, object]:
    report = read_json(out / "report.json")
    return {key: report[key] for key in ("tasks", "router", "normalised", "seed", "config_hash")}


def test_a_run_leaves_all_that_is_promised(finished: Path) -> None:
    assert {"config.yaml", "log.jsonl", "report.json", "system", "data"} <= {path.name for path in finished.iterdir()}
    for name in ("mood", "names", "ask"):
        for split in ("train", "router", "joint", "validation", "calibration", "test"):
            rows = lines(finished / "data" / name / f"{split}.jsonl")
            assert rows and set(rows[0]) == {"text", "pair", "task_id", "task_name", "target", "id"}
    report = read_json(finished / "report.json")
    assert {"tasks", "router", "normalised", "cost", "versions", "seed", "config_hash", "truncation"} <= set(report)
    assert set(report["tasks"]) == {"mood", "names", "ask"}
    for row in report["tasks"].values():
        assert {"metric", "oracle", "routed", "n", "ci95"} <= set(row) and set(row["ci95"]) == {"oracle", "routed"}
        assert row["n"] == 12
    assert {"accuracy", "macro_f1", "ece", "majority", "tasks", "confusion"} <= set(report["router"])
    assert set(report["cost"]["seconds"]) == {"prepare", "experts", "router", "joint"}
    assert report["config_hash"] == load(finished / "config.yaml").digest()
    assert lines(finished / "log.jsonl")[0]["phase"] == "prepare"
    assert {line["phase"] for line in lines(finished / "log.jsonl")} == {"prepare", "experts", "router", "joint"}
    system = System.load(finished / "system")
    assert system.names == ["mood", "names", "ask"] and system.info["recipe"] == "tiny"
    assert system.library is not None and all(system.library.skill(name) for name in system.names)
    assert not list(finished.rglob("*.checkpoint")) and not list(finished.rglob("*.tmp"))


@pytest.mark.e2e
def test_phase_by_phase_gives_the_same_bits(home: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert call("prepare", *words(home), "--out", out).exit_code == 0
    for phase in ("experts", "router", "joint"):
        result = call("fit", phase, "--out", out)
        assert result.exit_code == 0, result.output
        assert System.load(out / "system").names == ["mood", "names", "ask"]
    assert weights(out / "system") == weights(finished / "system")
    assert lines(out / "log.jsonl") == lines(finished / "log.jsonl")
    result = call("run", "--out", out, "--resume")
    assert result.exit_code == 0 and "routed / oracle" in result.output
    assert scores(out) == scores(finished)


def test_a_phase_out_of_order_says_which_is_missing(home: Path, tmp_path: Path) -> None:
    refused(
        call("fit", "router", *words(home), "--out", tmp_path / "run"), "no finished 'experts' phase", "fit experts"
    )


RUN = "import sys; sys.path[:0] = {path!r}; from dynamorouter.cli.main import app; app({words!r})"


def start(home: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    code = RUN.format(path=sys.path, words=["run", *words(home), "--out", str(out), *more])
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # other threads, other last bits
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def logged(out: Path, phase: str, count: int) -> bool:
    try:
        return pipeline._last_round(out / "phases" / f"{phase}.0.checkpoint") >= count
    except LibraryError:  # not there yet, or just being replaced
        return False


KILLS: dict[str, Callable[[Path], bool]] = {
    "in the experts": lambda out: logged(out, "experts", 4),
    "in the router": lambda out: (out / "phases" / "experts" / "system.json").is_file(),
    "in the joint phase": lambda out: logged(out, "joint", 1),
}


@pytest.mark.e2e
def test_killed_again_and_again_it_ends_with_the_same_bits(home: Path, finished: Path, tmp_path: Path) -> None:
    """SIGKILL a real process at three places in turn; the last sitting is done in this process."""
    out = tmp_path / "run"
    for number, reached in enumerate(KILLS.values()):
        process = start(home, out, *(["--resume"] if number else []))
        try:
            while process.poll() is None and not reached(out):
                time.sleep(0.002)
        finally:
            process.kill()
        said = process.communicate()[0].decode()
        assert process.returncode == -signal.SIGKILL, said
    assert not (out / "report.json").exists()
    result = call("run", "--out", out, "--resume")
    assert result.exit_code == 0, result.output
    assert weights(out / "system") == weights(finished / "system")
    assert scores(out) == scores(finished)
    assert lines(out / "log.jsonl") == lines(finished / "log.jsonl")
    assert not list(out.rglob("*.tmp")) and not list(out.rglob("*.checkpoint"))
    seconds = read_json(out / "report.json")["cost"]["seconds"]
    assert set(seconds) == {"prepare", "experts", "router", "joint"}


class Killed(BaseException):
    """Stands for a kill at a place that a signal would seldom hit."""


@pytest.mark.parametrize(
    ("module", "name", "times"),
    [
        pytest.param("dynamorouter.training.loop", "write_tensors", 5, marks=pytest.mark.e2e),  # between checkpoints
        pytest.param(
            "dynamorouter.runs.run", "write_json", 12, marks=pytest.mark.e2e
        ),  # between a checkpoint and its note
        pytest.param("dynamorouter.data.prepare", "write_records", 4, marks=pytest.mark.e2e),  # between a task's splits
        pytest.param("dynamorouter.system.library", "write_tensors", 2, marks=pytest.mark.e2e),  # in saving a system
        pytest.param("dynamorouter.runs.phases", "keep_better_router", 0, marks=pytest.mark.e2e),
        pytest.param("dynamorouter.runs.phases", "score_system", 0, marks=pytest.mark.e2e),
    ],
)
def test_stopped_anywhere_it_ends_with_the_same_bits(
    home: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str, times: int
) -> None:
    out, config = tmp_path / "run", settings(home)
    open_run(config, out, resume=False)
    with monkeypatch.context() as patch:
        place = importlib.import_module(module)
        real, calls = getattr(place, name), []

        def killed(*args: object, **kwargs: object) -> object:
            calls.append(1)
            if len(calls) > times:
                raise Killed
            return real(*args, **kwargs)

        patch.setattr(place, name, killed)
        with pytest.raises(Killed):
            pipeline.run(config, out)
    pipeline.run(config, out)
    assert weights(out / "system") == weights(finished / "system")
    assert scores(out) == scores(finished)
    assert lines(out / "log.jsonl") == lines(finished / "log.jsonl")


def test_killed_between_result_and_note_a_phase_is_not_done_again(
    home: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "system")
    (out / ".system.123.tmp").mkdir()
    monkeypatch.setattr(pipeline, "train_experts", None)
    pipeline.run(settings(home), out)
    assert weights(out / "system") == weights(finished / "system")
    assert not list(out.glob(".*.tmp"))


def test_resuming_a_finished_run_changes_nothing(home: Path, finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    result = call("run", *words(home), "--out", out, "--resume")
    assert result.exit_code == 0 and "routed / oracle" in result.output
    assert contents(out) == contents(finished)


def test_resuming_leaves_a_system_alone_that_was_changed_since(home: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    assert call("expert", "remove", out / "system", "mood").exit_code == 0
    assert call("run", "--out", out, "--resume").exit_code == 0
    assert System.load(out / "system").names == ["names", "ask"]


def test_a_run_is_not_begun_again_nor_gone_on_with_otherwise(home: Path, finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    refused(call("run", *words(home), "--out", out), "a finished run", "--resume")
    refused(
        call("run", *words(home, "experts.rank=3", "seed=4"), "--out", out, "--resume"),
        "experts.rank was 2 and is 3",
        "seed was 0 and is 4",
    )
    refused(call("fit", "joint", *words(home, "joint.epochs=2"), "--out", out), "joint.epochs was 1 and is 2")
    assert contents(out) == contents(finished)


def trained(home: Path, out: Path, *more: str) -> dict[str, str]:
    """Prepare and train experts for one epoch in a new folder, and return the hashes of what they learned."""
    config = settings(home, "experts.epochs=1", *more)
    open_run(config, out, resume=False)
    pipeline.prepare(config, out)
    pipeline.fit_experts(config, out)
    return weights(out / "system")


@pytest.mark.e2e
def test_where_the_trunk_is_kept_changes_nothing(home: Path, tmp_path: Path) -> None:
    in_memory = trained(home, tmp_path / "memory", "experts.trunk_cache.where=memory")
    assert in_memory and trained(home, tmp_path / "disk", "experts.trunk_cache.where=disk") == in_memory
    assert not list((tmp_path / "disk").rglob("*trunk/*"))


@pytest.mark.e2e
def test_accumulated_batches_are_one_large_one(home: Path, tmp_path: Path) -> None:
    whole = trained(home, tmp_path / "whole", "experts.batch_rows=8")
    assert whole and trained(home, tmp_path / "halves", "experts.batch_rows=4", "experts.accumulation=2") == whole


@pytest.mark.e2e
def test_tasks_on_another_base(home: Path, tmp_path: Path) -> None:
    """A task names a base by its key under ``bases``, which need not be the base's own name."""
    other = f"bases.second={{name: other, path: {home / 'conf' / 'models' / 'roberta'}}}"
    out, more = tmp_path / "run", (other, "task.names.base=second", "experts.epochs=1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "fit_system_router", None)
        config = settings(home, *more)
        open_run(config, out, resume=False)
        with pytest.raises(TypeError):
            pipeline.run(config, out)
    done = call("run", *words(home, *more), "--out", out, "--resume")
    assert done.exit_code == 0, done.output
    system = System.load(out / "system")
    assert {e.name: e.base for e in system.experts} == {"mood": "tiny", "names": "other", "ask": "tiny"}
    assert {line.get("part") for line in lines(out / "log.jsonl") if line["phase"] == "experts"} == {"tiny", "other"}
    assert [p.task for p in system.predict(["anna in paris"], tasks=["names"])] == ["names"]
    before, after = (weights(out / "phases" / phase / "experts") for phase in ("router", "joint"))
    unchanged = {name for name in before if before[name] == after[name]}
    assert unchanged >= {name for name in before if name.startswith("names/")}
    everything = [f"task.{name}.base=second" for name in ("mood", "names", "ask")]
    nowhere = call("run", *words(home, other, *everything), "--out", tmp_path / "nowhere")
    refused(nowhere, "joint.enabled", "all tasks name second")


@pytest.mark.parametrize(
    "kind",
    [
        "tfidf",
        "oracle",
        *(pytest.param(kind, marks=pytest.mark.e2e) for kind in ("centroids", "knn", "arrow", "attention")),
    ],
)
def test_other_routers(home: Path, finished: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out, ignore=shutil.ignore_patterns("joint", "router", "system", "report.json"))
    shutil.copytree(finished / "data", out / "data", dirs_exist_ok=True)  # 'router' and 'joint' rows are files there
    more = ("router.options={examples: 8}",) if kind == "centroids" else ()
    config = settings(home, f"router={kind}", "router.train_rows=16", "joint.enabled=false", *more)
    pipeline.fit_router(config, out)
    report = read_json(pipeline.report(config, out))
    assert set(report["tasks"]) == {"mood", "names", "ask"}
    if kind == "oracle":
        assert report["router"]["accuracy"] == 1.0 and report["normalised"] == 1.0
    again = System.load(out / "system")
    if kind != "oracle":
        assert again.predict(["the film was dull"])[0].task in again.names


def test_every_registered_router_has_a_file_that_the_check_knows() -> None:
    named = {yaml.safe_load(path.read_text())["kind"] for path in (CONF / "router").glob("*.yaml")}
    assert named == set(routers)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["router.kind=mpl"], "no such router 'mpl' (did you mean 'mlp'?)"),
        (["router.options={depth: 3}"], "unknown option 'depth'"),
        (["router=knn", "joint.enabled=true", "router.options={k: 3}"], "router.kind is 'knn'"),
        (["router.options={held_out: 3}"], "held_out: router 'mlp': got 3; should be less than 1"),
        (["router.kind=mpl", "experts.rnk=2", "seed=-1"], "3 settings are wrong"),
    ],
)
def test_mistakes_about_the_router_are_found_before_any_work(
    home: Path, tmp_path: Path, more: list[str], said: str
) -> None:
    refused(call("run", *words(home, *more), "--out", tmp_path / "run"), said)
    assert not (tmp_path / "run").exists()


def test_rows_longer_than_the_base_reads_are_counted_and_not_warned_of(
    finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    system = System.load(finished / "system", device="cpu")
    expert = system.experts[0]
    base = system.bases[expert.base]
    base.tokenizer.model_max_length = 16
    record = Record("a film " * 30, None, 0, expert.task.name, expert.task.labels[0], "0")
    source = logging.getLogger("transformers")
    source.addHandler(caplog.handler)
    try:
        assert pipeline._truncation([record], base, expert)["truncated"] == 1.0
    finally:
        source.removeHandler(caplog.handler)
    assert not caplog.records


@pytest.mark.e2e
def test_settings_from_a_json_file(home: Path, tmp_path: Path) -> None:
    tree = {
        "recipe": "tiny",
        "search_path": [str(home / "conf")],
        "data": {"source": "local", "root": str(home / "rows")},
        "tasks": ["ask", "mood"],
        "experts": {"epochs": 1},
        "joint": {"enabled": False},
    }
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(tree))
    result = call("run", "--config", path, "experts.rank=3", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    system = System.load(tmp_path / "run" / "system")
    assert system.names == ["ask", "mood"] and system.experts[0].lora.rank == 3
    assert [line for line in result.output.splitlines() if line.startswith("system: ")]


def test_the_errors_are_of_the_documented_kinds() -> None:
    with pytest.raises(ConfigError):
        check_router({"kind": "mlp", "layers": "trunk", "options": {"nothing": 1}})
    with pytest.raises(RouterError):
        check_router({"kind": "mlp", "layers": "trunk", "hidden": -1})
