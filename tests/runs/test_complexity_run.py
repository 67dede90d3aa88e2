"""The whole recipe over a tiny random decoder: phases, report, resume, and the public class beside ``System``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("spacy")
from dynamorouter import ComplexityRouter
from dynamorouter.config.compose import compose
from dynamorouter.config.schema import Config
from dynamorouter.data.complexity.analyzer import Analyzer
from dynamorouter.data.prepare import load_prepared
from dynamorouter.errors import ConfigError, DataError
from dynamorouter.evaluation.complexity import ARMS, ONE
from dynamorouter.metrics.routing import gini
from dynamorouter.model.base.base import Base
from dynamorouter.model.lora.gates import RowGate
from dynamorouter.model.lora.mount import mount
from dynamorouter.model.text.examples import make_examples
from dynamorouter.model.text.passes import ExamplePasses
from dynamorouter.runs import phases as pipeline
from dynamorouter.runs.complexity import complexity_report
from dynamorouter.runs.run import open_run
from dynamorouter.system.library import Library
from dynamorouter.system.system import System
from dynamorouter.utils.files import read_json
from support.shared import made_once
from support.tinylm import write_lm
from support.tinyrun import call, finish, weights
from support.toyparse import toy_pipeline

WORDS = [
    *(
        "complexity.least_rows=8",
        "base.prompt=plain",
        "experts.rank=2",
        "experts.alpha=4",
        "experts.epochs=2",
        "experts.batch_rows=4",
    ),
    *("experts.accumulation=1", "experts.trunk_depth=1", "experts.checkpoint_every=1", "router.epochs=3"),
    *("router.train_rows=8", "router.hidden=8", "joint.train_rows=4", "joint.batch_rows=6", "device=cpu"),
    *("evaluation.select_rows=4", "evaluation.calibrate_rows=4", "evaluation.report_rows=4", "evaluation.bootstrap=20"),
    *(f"task.{tier}.prompt=plain" for tier in ("simple", "medium", "complex")),
    *(f"task.{tier}.max_tokens=48" for tier in ("simple", "medium", "complex")),
    *(f"task.{tier}.generation.max_new_tokens=8" for tier in ("simple", "medium", "complex")),
]


def write_place(folder: Path) -> None:
    """Write a tiny decoder and rows of instructions whose trees differ."""
    write_lm(folder / "gpt2", "gpt2")
    for split, count in (("train", 75), ("validation", 45)):
        rows = [
            {"instruction": f"{split[0]}{i} " + "do , " * (1 + i * 7 % 13), "input": "it" * (i % 2), "output": f"{i}"}
            for i in range(count)
        ]
        path = folder / "rows" / "alpaca" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "tiers", write_place)


def settings(place: Path, *more: str) -> Config:
    words = [f"base.path={place / 'gpt2'}", "data=local", f"data.root={place / 'rows'}"]
    return compose("complexity", [*words, *WORDS, *more])


def toy(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Analyzer, "load", staticmethod(lambda pipeline="auto": Analyzer(toy_pipeline(), name="toy")))


@pytest.fixture(scope="module")
def done(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            toy(patch)
            finish(settings(place), folder / "run")

    return made_once(tmp_path_factory, "tiers_run", make) / "run"


def test_report_holds_all_arms_with_intervals_and_the_baselines_of_routing(done: Path) -> None:
    found = read_json(done / "report.json")["complexity"]
    assert set(found["arms"]) == set(ARMS)
    for arm in found["arms"].values():
        low, high = arm["loss_ci95"]
        assert low <= arm["loss"] <= high
        assert set(arm["by_tier"]) == {"simple", "medium", "complex"}
    assert found["parameters"]["tiers"] == found["parameters"][ONE] > 0
    assert found["differences"]["routed - one_lora"]["ci95"][0] <= found["differences"]["routed - one_lora"]["loss"]
    routing = found["routing"]
    assert {"accuracy", "majority", "length_only", "complexity_mse", "gini"} <= set(routing)
    assert sum(routing["usage"].values()) == pytest.approx(1.0)
    assert set(found["latency_ms"]) == {"batch", "batch_with_base", "single", "single_with_base"}


def test_the_arms_of_the_system_equal_the_scores_of_its_tasks(done: Path) -> None:
    report = read_json(done / "report.json")
    for name, value in report["complexity"]["arms"]["true_tier"]["by_tier"].items():
        assert report["tasks"][name]["oracle"] == pytest.approx(2.718281828**value, rel=1e-3)


def test_the_arms_are_what_their_gates_make_of_each_row_and_share_the_base_of_the_system(
    place: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, data = settings(place), load_prepared(done / "data", list(settings(place).task))
    system = System.load(done / "system", device="cpu")
    monkeypatch.setattr(Base, "load", None)
    report = complexity_report(config, done, system, data)
    written = read_json(done / "report.json")["complexity"]
    assert report["parameters"] == written["parameters"] and set(report) == set(written)
    base, expert = system.bases[system.router_base], system.experts[0]
    rows = [record for name in system.names for record in data.split("test", name)]
    examples = make_examples(base, expert.head, expert.task, rows, expert=0)
    passes = ExamplePasses(base, examples, budget=None)  # each row alone, by its gate
    third = torch.full((1, 3), 1 / 3)

    def mean_loss(gate: RowGate) -> float:
        losses = passes.losses(expert.head, lambda positions: gate)
        return sum(loss for loss, _ in losses) / sum(tokens for _, tokens in losses)

    for arm, gate in (("base", RowGate(torch.tensor([-1]))), ("uniform", RowGate(torch.arange(3)[None], third))):
        mean = mean_loss(gate)
        for found in (report, written):
            assert found["arms"][arm]["loss"] == pytest.approx(mean, rel=1e-5), arm
    (one,) = Library(done / "phases" / ONE).names()
    with mount(base, [Library(done / "phases" / ONE).load(one, base)]):
        assert report["arms"][ONE]["loss"] == pytest.approx(mean_loss(RowGate(torch.tensor([0]))), rel=1e-5)


def test_phases_change_what_they_are_for_and_freeze_the_rest(done: Path) -> None:
    experts, router, joint = (weights(done / "phases" / phase) for phase in ("experts", "router", "joint"))
    factors = {name for name in experts if name.endswith("adapter_model.safetensors")}
    assert len(factors) == 3
    assert all(router[name] == experts[name] for name in factors)
    assert "router/router.safetensors" not in experts and "router/router.safetensors" in router
    assert set(joint) >= set(router)


@pytest.mark.e2e
def test_an_interrupted_run_ends_with_the_same_bits(
    place: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy(monkeypatch)
    config, out = settings(place), tmp_path / "run"
    open_run(config, out, resume=False)
    pipeline.prepare(config, out)
    pipeline.fit_experts(config, out)
    open_run(config, out, resume=True)
    pipeline.run(config, out)
    assert weights(out / "system") == weights(done / "system")
    once, twice = (read_json(folder / "report.json")["complexity"]["arms"] for folder in (done, out))
    assert once == twice


def test_serving_needs_no_spacy_and_equals_the_system(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "spacy", None)
    texts, inputs = ["do , do", "do it now , please"], [None, "it"]
    router = ComplexityRouter.from_pretrained(done / "system", device="cpu")
    system = System.load(done / "system", device="cpu")
    assert router.generate(texts, inputs, max_new_tokens=5) == system.generate(texts, inputs, max_new_tokens=5)
    assert router.route(texts, inputs) == system.route(texts, inputs)
    values = router.complexity(texts, inputs)
    assert all(0 <= value <= 1 for value in values)
    assert router.complexity(texts[1:], inputs[1:]) == pytest.approx(values[1:], abs=1e-5)


def test_a_system_with_another_router_is_refused(finished: Path) -> None:
    with pytest.raises(ConfigError, match="TaskMLP"):
        ComplexityRouter.from_pretrained(finished / "system")


def test_thresholds_that_leave_a_tier_empty_stop_the_run(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy(monkeypatch)
    config = settings(place, "complexity.tiers=thresholds", "complexity.thresholds=[0.97,0.99]")
    with pytest.raises(DataError, match=r"complexity\.tiers=quantile"):
        pipeline.prepare(config, tmp_path)


def test_a_wrong_key_of_the_branch_is_named(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"complexity.tier: unknown key.*tiers"):
        settings(place, "+complexity.tier=quantile")


def test_gini_is_0_for_even_use_and_two_thirds_for_one_of_three() -> None:
    import numpy as np

    assert gini(np.array([1 / 3] * 3)) == pytest.approx(0.0)
    assert gini(np.array([0.0, 1.0, 0.0])) == pytest.approx(2 / 3)


@pytest.mark.e2e
def test_explore_prints_tables_and_writes_numbers_and_picture(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy(monkeypatch)
    found = call("explore", "complexity", "--data", place / "rows", "--out", tmp_path, "--format", "svg")
    assert found.exit_code == 0, found.output
    assert "syntactic_depth" in found.output and "quantile" in found.output
    assert read_json(tmp_path / "complexity.json")["rows"] == 75
    assert (tmp_path / "complexity.svg").read_text().startswith("<?xml")
    assert call("explore", "complexity", "--format", "gif").exit_code == 2
    few = call("explore", "complexity", "data.filters.max_words=9", "--data", place / "rows", "--no-plots")
    assert few.exit_code == 0 and "21/21 rows" in few.output, few.output
