"""Merges of a saved system: each task keeps its head, the router stays valid, PEFT agrees, refusals change nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from dynamorouter.errors import LibraryError, MergeError
from dynamorouter.merging.merge import merge_experts
from dynamorouter.merging.registry import merges
from dynamorouter.system import merge as merging
from dynamorouter.system.edit import remove_expert
from dynamorouter.system.system import System
from support.mergecases import change
from support.tinyrun import call, contents, refused

TEXTS = ["the film was dull", "shares rose", "anna was in paris", "who won the match"]


@pytest.fixture
def system(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of a finished run's system."""
    return Path(shutil.copytree(finished / "system", tmp_path / "system"))


def test_a_merge_is_added_with_a_head_for_each_task(system: Path) -> None:
    before = System.load(system)
    said = call("merge", system, "mood", "names", "--method", "linear", "--weights", "0.3,0.7", "--out", "both")
    assert said.exit_code == 0, said.output
    assert "added both.mood, both.names" in said.output
    after = System.load(system)
    assert after.names == [*before.names, "both.mood", "both.names"] and after.classes == before.classes
    mood, names = after.experts[-2:]
    assert mood.factors is names.factors  # held once in memory
    bank = next(iter(after.engine.mounted["tiny"].banks.values()))
    assert bank.experts == len(before.experts) + 1
    assert mood.task == before.experts[before.index("mood")].task
    head = before.experts[before.index("mood")].head.state_dict()
    assert all(torch.equal(value, head[key]) for key, value in mood.head.state_dict().items())
    assert mood.card["merge"]["sources"] == ["mood", "names"] and mood.card["merge"]["head_of"] == "mood"
    for layer, factors in mood.factors.items():
        each = [change(before.experts[before.index(name)].factors[layer]) for name in ("mood", "names")]
        torch.testing.assert_close(change(factors), 0.3 * each[0] + 0.7 * each[1], rtol=1e-4, atol=1e-6)
    for one, two in zip(before.predict(TEXTS), after.predict(TEXTS), strict=True):
        assert one.expert == two.expert and one.answer == two.answer  # the router does not know the merge
        assert two.route.get("both.mood", 0.0) == 0.0
    told = call("predict", system, TEXTS[0], "--task", "both.mood", "--json")
    found = json.loads(told.output)
    assert found["expert"] == "both.mood" and found["task"] == "mood" and found["answer"] in ("bad", "good")


def test_scores_of_merges_do_not_spoil_those_of_the_router(home: Path, system: Path, tmp_path: Path) -> None:
    data = home / "rows"
    line = ("score", system, "--data", data, "--limit", "8", "--keep-seen", "--out", tmp_path / "scores.json")
    assert call(*line).exit_code == 0
    before = json.loads((tmp_path / "scores.json").read_text())
    assert call("merge", system, "mood", "names", "--method", "linear", "--out", "both").exit_code == 0
    assert call(*line).exit_code == 0
    after = json.loads((tmp_path / "scores.json").read_text())
    assert {"both.mood", "both.names"} < set(after["tasks"])
    for key in ("accuracy", "macro_f1", "ece"):
        assert after["router"][key] == pytest.approx(before["router"][key], abs=1e-5)
    assert after["normalised"] == pytest.approx(before["normalised"], abs=1e-5)
    assert after["tasks"]["mood"] == before["tasks"]["mood"]
    assert after["tasks"]["both.mood"]["metric"] == "accuracy"


def test_a_merge_takes_its_sources_place(system: Path) -> None:
    before = System.load(system)
    assert before.library is not None
    skill = before.library.skill("mood")
    said = call("merge", system, "mood", "names", "--method", "tsv", "--rank", "2", "--out", "both", "--replace")
    assert said.exit_code == 0, said.output
    after = System.load(system)
    assert after.names == before.names and after.classes == before.classes
    mood, names = (after.experts[after.index(name)] for name in ("mood", "names"))
    assert mood.factors is names.factors and mood.lora.rank == 2
    assert mood.card["merge"]["name"] == "both"
    kept = after.library.skill("mood") if after.library else None
    assert skill is not None and kept is not None
    assert all(torch.equal(value, kept.states[layer]) for layer, value in skill.states.items())
    for one, two in zip(before.predict(TEXTS), after.predict(TEXTS), strict=True):
        assert one.expert == two.expert and one.route == pytest.approx(two.route)


def test_a_merged_system_in_memory_answers_as_the_saved_one(system: Path) -> None:
    loaded = System.load(system)
    result = merge_experts(merging.named(loaded, ["mood", "ask"]), method="ties", output="rank=3")
    merged = merging.merged_system(loaded, result)
    answers = [p.answer for p in merged.predict(TEXTS, tasks=["mood"] * 4)]
    assert merged.names == loaded.names
    merging.add_merge(system, ["mood", "ask"], name="m", method="ties", output="rank=3", replace_sources=True)
    assert [p.answer for p in System.load(system).predict(TEXTS, tasks=["mood"] * 4)] == answers


def test_one_expert_merged_alone_answers_as_before(system: Path) -> None:
    before = System.load(system)
    merging.add_merge(system, ["mood"], name="same")
    after = System.load(system)
    for one, two in zip(
        before.predict(TEXTS, tasks=["mood"] * 4), after.predict(TEXTS, tasks=["same.mood"] * 4), strict=True
    ):
        assert one.answer is not None and two.answer is not None
        assert one.answer.value == two.answer.value and one.answer.score == pytest.approx(two.answer.score, abs=1e-5)


def test_peft_agrees_with_a_merge(system: Path) -> None:
    assert call("merge", system, "mood", "names", "--method", "ties", "--energy", "0.9", "--out", "both").exit_code == 0
    said = call("merge", "verify", system, "both", "--json")
    assert said.exit_code == 0, said.output
    rows = json.loads(said.output)
    assert [row["expert"] for row in rows] == ["both.mood", "both.names"]
    assert all(row["ok"] and row["difference"] < 1e-5 < row["change"] for row in rows)
    path = system / "experts" / "both.mood" / "adapter_config.json"
    config = json.loads(path.read_text())
    assert config["rank_pattern"] or config["r"] >= 1
    weights = system / "experts" / "both.names" / "adapter_model.safetensors"
    shutil.copy(system / "experts" / "mood" / "adapter_model.safetensors", weights)
    shutil.copy(system / "experts" / "mood" / "adapter_config.json", weights.with_name("adapter_config.json"))
    assert "ok" in call("merge", "verify", system, "both.names").output  # it is what the folder says that is compared


def test_verify_tells_a_difference(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "TOLERANCE", -1.0)
    said = call("merge", "verify", system, "mood")
    assert said.exit_code == 1 and "differs" in said.output


def test_the_doctor_speaks_before_a_merge(system: Path) -> None:
    untouched = contents(system)
    said = call("merge", "doctor", system)
    assert said.exit_code == 0, said.output
    assert "mood / names" in said.output and "signs differ" in said.output and "factor_average" in said.output
    found = json.loads(call("merge", "doctor", system, "mood", "ask", "--method", "slerp", "--json").output)
    assert [(p["one"], p["other"]) for p in found["pairs"]] == [("ask", "mood")]
    assert {f["method"] for f in found["forecasts"]} == {"slerp"}
    assert contents(system) == untouched
    assert "encoder.layer" in call("merge", "doctor", system, "mood", "ask", "--layers").output


def test_regmean_merges_from_stored_moments(home: Path, system: Path) -> None:
    line = ("merge", system, "mood", "names", "--method", "regmean")
    refused(call(*line, "--out", "m"), "merge moments", "--data")
    said = call("merge", "moments", system, "--data", home / "rows", "--rows", "8")
    assert said.exit_code == 0 and "mood:" in said.output
    assert call(*line, "--out", "stored").exit_code == 0
    assert call(*line, "--out", "fresh", "--data", home / "rows", "--rows", "8").exit_code == 0
    after = System.load(system)
    stored, fresh = (after.experts[after.index(f"{name}.mood")].factors for name in ("stored", "fresh"))
    for layer in stored:
        torch.testing.assert_close(change(stored[layer]), change(fresh[layer]), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in merges.names() if merges.get(name).needs not in (None, "grams")])
def test_methods_that_need_rows_take_them_from_the_command_line(name: str, home: Path, system: Path) -> None:
    few = {"lorahub": ["budget=4"], "layerwise": ["budget=4"], "adamerging": ["steps=3"], "fisher": []}[name]
    line: list[str | Path] = ["merge", system, "mood", "names", "--method", name, "--out", "m", "--rank", "2"]
    refused(call(*line), "--data DIR", f"needs {merges.get(name).needs}")
    options = [word for each in few for word in ("--option", each)]
    said = call(*line, "--data", home / "rows", "--rows", "6", *options)
    assert said.exit_code == 0, said.output
    assert "m.mood" in System.load(system).names


@pytest.mark.parametrize("name", [name for name in merges.names() if merges.get(name).needs is None])
def test_every_method_that_needs_no_rows_runs_from_the_command_line(name: str, system: Path) -> None:
    said = call("merge", system, "mood", "ask", "--method", name, "--rank", "2", "--out", name)
    assert said.exit_code == 0, said.output
    assert {f"{name}.mood", f"{name}.ask"} < set(System.load(system).names)


def test_refusals_change_nothing(home: Path, system: Path) -> None:
    assert call("merge", system, "mood", "names", "--method", "linear", "--out", "both").exit_code == 0
    untouched = contents(system)
    line: list[str | Path] = ["merge", system, "mood", "names", "--method"]
    refused(call(*line, "linear", "--out", "both"), "'both.mood'", "already")
    refused(call(*line, "linear", "--out", "a/b"), "cannot be used as a file name")
    refused(call(*line, "tie", "--out", "x"), "did you mean 'ties'")
    refused(call(*line, "linear", "--out", "x", "--rank", "2", "--energy", "0.5"), "exclude each other")
    refused(call(*line, "linear", "--out", "x", "--rank", "0"), "rank=K")
    refused(call(*line, "linear", "--out", "x", "--weights", "1,b"), "no number")
    refused(call(*line, "linear", "--out", "x", "--weights", "1"), "2 experts, but 1 weights")
    refused(call(*line, "ties", "--out", "x", "--option", "density"), "not KEY=VALUE")
    refused(call(*line, "ties", "--out", "x", "--option", "seed=3"), "argument of its own")
    refused(call("merge", system, "mood", "moods", "--method", "linear", "--out", "x"), "no expert 'moods'")
    refused(call("merge", system, "mood", "mood", "--method", "linear", "--out", "x"), "more than once")
    refused(call(*line, "fisher", "--out", "x", "--data", home), "no train.jsonl")
    refused(call("merge", "verify", system, "none"), "no merge 'none'", "both")
    refused(call("merge", "doctor", system.parent), "no saved system")
    assert contents(system) == untouched


def test_both_forms_of_the_command_are_found(system: Path, tmp_path: Path) -> None:
    shutil.copytree(system, tmp_path / "doctor")
    plain = call("merge", "experts", system, "mood", "--method", "linear", "--out", "one")
    assert plain.exit_code == 0, plain.output
    first = call("merge", "--method", "linear", "--out", "two", system, "mood")
    assert first.exit_code == 0, first.output
    named = call("merge", tmp_path / "." / "doctor", "mood", "--method", "linear", "--out", "one")
    assert named.exit_code == 0, named.output
    shown = call("merge", "--help").output
    assert all(word in shown for word in ("doctor", "verify", "moments", "experts"))
    listed = call("list", "merges")
    assert listed.exit_code == 0 and all(name in listed.output for name in merges.names())


def test_merges_can_be_removed_and_merged_again(system: Path) -> None:
    merging.add_merge(system, ["mood", "names"], name="both")
    merging.add_merge(system, ["both.mood", "ask"], name="all", method="task_arithmetic", options={"scale": 0.5})
    assert System.load(system).names[-2:] == ["all.both.mood", "all.ask"]
    for name in ("both.mood", "both.names"):
        remove_expert(system, name)
    assert System.load(system).names[-2:] == ["all.both.mood", "all.ask"]
    with pytest.raises(LibraryError, match=r"no expert 'both\.mood'"):
        merging.add_merge(system, ["both.mood"], name="again")


def test_experts_with_a_fusion_and_those_it_mixes_stay(system: Path) -> None:
    import dataclasses

    from dynamorouter.model.lora.fusion import Fusion

    loaded = System.load(system)
    ask = loaded.experts[loaded.index("ask")]
    fused = dataclasses.replace(ask, fusion=Fusion(("mood", "ask"), {}, ask.head))
    mixed = System(
        loaded.bases,
        [fused if e.name == "ask" else e for e in loaded.experts],
        loaded.router,
        router_base=loaded.router_base,
        classes=loaded.classes,
    )
    with pytest.raises(MergeError, match="answers through a fusion"):
        merge_experts(mixed.experts)
    result = merge_experts([e for e in mixed.experts if e.fusion is None])
    with pytest.raises(MergeError, match="the fusion of 'ask' mixes"):
        merging.merged_system(mixed, result)
