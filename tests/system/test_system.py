"""Laws of the system: a mixed batch equals each row alone, one pass equals two, saved equals loaded."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from dynamorouter.data.short import shortened
from dynamorouter.errors import ConfigError, DataError, LibraryError, RouterError
from dynamorouter.evaluation.score import answer_all, score_system
from dynamorouter.inference.prediction import Prediction
from dynamorouter.metrics.base import score
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.config import BaseSpec
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.lora.mount import mount
from dynamorouter.routing.base import Route, Router, RouterInput
from dynamorouter.routing.pooling import FeatureSample
from dynamorouter.routing.serialization import build
from dynamorouter.system.router import RouterRows, fit_system_router
from dynamorouter.system.system import System
from dynamorouter.tasks.kinds.tagging import entity_list
from dynamorouter.tasks.task import Columns, Task
from dynamorouter.training.config import ExpertConfig
from dynamorouter.training.experts import fit_experts, fresh_expert
from dynamorouter.training.learner import ExpertPlan
from dynamorouter.training.loop import LoopOptions
from dynamorouter.training.router import read_rows
from dynamorouter.utils.files import read_metadata, read_tensors
from support.builders import ASK, MOOD, NAMES, TASKS
from support.shared import made_once
from support.systems import HELD, ROWS, SETTINGS, mounted_again, questions, same
from support.tinylm import load_lm

Loader = Callable[..., Base]


def write_system(base: Base, folder: Path) -> None:
    """Train an expert per tiny task and the router between them, and save the system."""
    config = ExpertConfig(rank=2, alpha=8, trunk_depth=2, epochs=8, batch_rows=8, learning_rate=1e-2)
    plans = [ExpertPlan(task, config) for task in TASKS]
    options = LoopOptions(tokens_per_batch=256)
    experts = fit_experts(base, plans, ROWS, HELD, options=options)
    system = System({"tiny": base}, experts, None, router_base="tiny", tokens_per_batch=256)
    fit_system_router(system, SETTINGS, RouterRows(ROWS, HELD), seed=0)
    system.save(folder)


@pytest.fixture(scope="module")
def trained(tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a system whose experts and router were trained, which no test may change."""

    def make(folder: Path) -> None:
        spec = BaseSpec(name="tiny", path=str(tiny_folder("bert")))
        write_system(Base.load(spec, device=torch.device("cpu")), folder / "system")

    return made_once(tmp_path_factory, "trained", make) / "system"


def load_trained(folder: Path) -> System:
    """Load what ``write_system`` saved."""
    return System.load(folder, device="cpu", tokens_per_batch=256)


@pytest.fixture(scope="module")
def system(trained: Path) -> System:
    return load_trained(trained)


def test_a_mixed_batch_equals_each_row_alone_in_any_order(system: System) -> None:
    texts, pairs = questions()
    together = system.predict(texts, pairs)
    assert {prediction.task for prediction in together} == {"mood", "names", "ask"}
    for text, pair, prediction in zip(texts, pairs, together, strict=True):
        same(system.predict([text], [pair])[0], prediction)
    for one, other in zip(system.predict(texts[::-1], pairs[::-1])[::-1], together, strict=True):
        same(one, other)


@pytest.mark.parametrize("depth", [0, 2])
def test_routed_equals_the_expert_given_and_the_route_alone(tiny_base: Loader, depth: int) -> None:
    system = untrained(tiny_base(), depth=depth)
    fit_system_router(system, SETTINGS, RouterRows(ROWS, HELD), seed=0)
    texts, pairs = questions()
    routed = system.predict(texts, pairs)
    given = system.predict(texts, pairs, [prediction.task for prediction in routed])
    for one, other, route in zip(routed, given, system.route(texts, pairs), strict=True):
        assert one.answer is not None and other.answer is not None
        assert one.answer.value == other.answer.value
        assert one.answer.score == pytest.approx(other.answer.score, abs=1e-5)
        assert one.route == pytest.approx(route, abs=1e-6)
        assert other.route == {one.expert: 1.0}


def test_the_trunk_runs_once(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    base = system.bases["tiny"]
    passes = [0] * base.depth
    hooks = [
        block.register_forward_hook(lambda *_, i=i: passes.__setitem__(i, passes[i] + 1))
        for i, block in enumerate(base.blocks)
    ]
    system.predict(["the film was dull", "who won ?"], [None, "the team won"])
    for hook in hooks:
        hook.remove()
    assert passes == [1, 1, 1, 1]


def test_baselines_that_do_not_look_at_rows_are_not_narrowed(system: System) -> None:
    texts = [f"row {i}" for i in range(40)]
    router = build("random", {})
    router.count = len(system.experts)  # type: ignore[attr-defined]
    engine = with_router(system, router).engine
    for _, chunk in engine.chunks([(text, "a second text") for text in texts]):
        drawn = engine.route(chunk).experts[:, 0].tolist()
        assert drawn == router.route(chunk.router_input()).experts[:, 0].tolist() and len(set(drawn)) > 1


def test_a_pair_goes_only_to_experts_that_read_pairs_and_a_single_text_to_any(system: System) -> None:
    texts = ["the film was dull", "who won ?"]
    alone, paired = system.route(texts), system.route(texts, ["the team won", "the team won"])
    for one, other in zip(alone, paired, strict=True):
        assert min(one.values()) > 0
        assert other == {"mood": 0.0, "names": 0.0, "ask": 1.0}
    mixed = system.route(texts, [None, "the team won"])
    assert mixed[0] == pytest.approx(alone[0], abs=1e-5)
    assert mixed[1] == paired[1]


def test_saved_equals_loaded(system: System, tmp_path: Path) -> None:
    system.save(tmp_path / "s")
    again = System.load(tmp_path / "s")
    texts, pairs = questions()
    for one, other in zip(system.predict(texts, pairs), again.predict(texts, pairs), strict=True):
        same(one, other, tolerance=1e-6)
    assert [json.loads(json.dumps(p.to_json()))["route"].keys() for p in again.predict(["the film"])]


def stored(folder: Path) -> dict[str, object]:
    """Return what every file of a saved system says, by its path."""
    said: dict[str, object] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            tensors = {key: (value.dtype, value.tolist()) for key, value in read_tensors(path).items()}
            said[name] = (read_metadata(path), tensors)
        else:
            said[name] = json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()
    return said


def untrained(base: Base, *, seed: int = 0, depth: int = 2) -> System:
    """Return a system whose experts and heads are drawn at random and whose router sends rows anywhere."""
    plans = [ExpertPlan(task, ExpertConfig(rank=2, alpha=8, trunk_depth=depth)) for task in TASKS]
    experts = []
    for place, plan in enumerate(plans):
        expert = fresh_expert(base, plan, seed=seed)
        generator = torch.Generator().manual_seed(10 * seed + place)
        for change in expert.factors.values():
            change.b.normal_(std=0.5, generator=generator)
        experts.append(expert)
    names = tuple(expert.name for expert in experts)
    return System({"tiny": base}, experts, Always(0), router_base="tiny", classes=names, tokens_per_batch=256)


@pytest.mark.parametrize("same_folder", [True, False])
def test_loading_and_saving_loses_nothing(tiny_base: Loader, tmp_path: Path, same_folder: bool) -> None:
    system = untrained(tiny_base())
    uniform = build("uniform", {})
    uniform.count = 3  # type: ignore[attr-defined]
    system.use_router(uniform, system.names)
    skills = {name: FeatureSample({2: torch.randn(4, 32).half()}, "mean") for name in system.names}
    folder = system.save(tmp_path / "s", skills=skills)
    before = stored(folder)
    assert {f"experts/{name}/skill.safetensors" for name in system.names} < set(before)
    after = stored(System.load(folder).save(folder if same_folder else tmp_path / "other"))
    assert after.keys() == before.keys()
    for name, said in before.items():
        assert after[name] == said, name


def test_threads_that_predict_at_once_get_what_each_gets_alone(tiny_base: Loader) -> None:
    system = untrained(tiny_base())
    texts, pairs = questions()
    names = [system.names[(i + len(texts)) % 3] for i in range(len(texts))]
    calls = [list(range(first, len(texts), 2)) * 2 for first in (0, 1, 2, 3)]

    def predict(rows: list[int]) -> list[Prediction]:
        return system.predict([texts[i] for i in rows], [pairs[i] for i in rows], [names[i] for i in rows])

    alone = [predict(rows) for rows in calls]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as threads:
            together = list(threads.map(predict, calls * 4))
    finally:
        sys.setswitchinterval(interval)
    for one, other in zip(alone * 4, together, strict=True):
        for serial, threaded in zip(one, other, strict=True):
            same(serial, threaded, tolerance=1e-5)


def test_a_stream_that_rests_keeps_nobody_waiting(lm_folder: Callable[[str], Path]) -> None:
    base = load_lm(lm_folder("gpt2"))
    task = Task(
        name="say",
        head="causal_lm",
        columns=Columns(text="text", target="said"),
        metrics=("perplexity",),
        max_tokens=32,
        stride=0,
    )
    config = ExpertConfig(rank=2, targets=("c_attn",), trunk_depth=1)
    tasks = [task.model_copy(update={"name": name}) for name in ("say", "tell")]
    experts = [fresh_expert(base, ExpertPlan(task, config), seed=0) for task in tasks]
    for place, expert in enumerate(experts):
        for change in expert.factors.values():
            change.b.normal_(std=0.5, generator=torch.Generator().manual_seed(place))
    system = System({base.spec.name: base}, experts, None, router_base=base.spec.name)
    options: dict[str, Any] = {"max_new_tokens": 12}
    whole = list(system.stream("a film", task="say", **options))
    told = system.generate(["no joy"], tasks=["tell"], **options)
    stream = system.stream("a film", task="say", **options)
    begun = [next(stream)]
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(system.generate, ["no joy"], tasks=["tell"], **options)
        assert other.result(timeout=60) == told == system.generate(["no joy"], tasks=["tell"], **options)
    assert len(whole) > 2 and [*begun, *stream] == whole


def test_a_system_whose_experts_were_displaced_says_so(tiny_base: Loader) -> None:
    base = tiny_base()
    first = untrained(base)
    texts, tasks = ["the film was dull"], ["mood"]
    before = first.predict(texts, tasks=tasks)
    with mount(base, first.experts[::-1]):
        with pytest.raises(LibraryError, match=r"no longer mounted on base 'tiny': ask.*System.load"):
            first.predict(texts, tasks=tasks)
        with mount(base, first.experts[:1]):
            pass
    same(first.predict(texts, tasks=tasks)[0], before[0])  # what was covered comes back
    second = untrained(base, seed=1)
    assert second.predict(texts, tasks=tasks)[0].answer is not None
    with pytest.raises(LibraryError, match="no longer mounted"):
        first.predict(texts, tasks=tasks)
    del second
    same(first.predict(texts, tasks=tasks)[0], before[0])


def test_experts_learn_and_the_router_finds_them(system: System) -> None:
    report = score_system(system, HELD, resamples=50)
    assert report["router"]["accuracy"] > 0.9 and report["router"]["majority"] == pytest.approx(1 / 3)
    assert report["tasks"]["mood"]["oracle"] > 0.8
    assert report["tasks"]["names"]["oracle"] > 0.5
    low, high = report["tasks"]["mood"]["ci95"]["oracle"]
    assert low <= report["tasks"]["mood"]["oracle"] <= high
    assert set(report) >= {"tasks", "router", "normalised", "cost", "versions", "seed", "config_hash"}
    assert set(report["cost"]["expert_share_of_base"]) == {"mood", "names", "ask"}


class Always(Router):
    """Sends every row to one expert."""

    layers = (1,)

    def __init__(self, expert: int, *, confidence: float = 1.0, abstain_below: float = 0.0, top_k: int = 1) -> None:
        self.expert, self.confidence, self.abstain_below, self.top_k = expert, confidence, abstain_below, top_k

    def fit(self, data) -> None:  # type: ignore[no-untyped-def]
        raise AssertionError

    def route(self, batch: RouterInput) -> Route:
        chances = torch.full((len(batch), 3), (1 - self.confidence) / 2)
        chances[:, self.expert] = self.confidence
        return Route.from_probabilities(chances, top_k=self.top_k, abstain_below=self.abstain_below)

    def state(self):  # type: ignore[no-untyped-def]
        return {"abstain_below": self.abstain_below}, {}

    @classmethod
    def restore(cls, options, tensors):  # type: ignore[no-untyped-def]
        raise AssertionError


def with_router(system: System, router: Router | None, classes: tuple[str, ...] = ("mood", "names", "ask")) -> System:
    """Return a system with another router over the experts that are mounted."""
    other = copy.copy(system)
    other.engine = copy.copy(system.engine)
    other.use_router(router, classes)
    return other


def test_a_wrongly_routed_row_gets_the_chosen_experts_answer_and_its_score(system: System) -> None:
    wrong = with_router(system, Always(0))
    report = score_system(wrong, HELD, resamples=20)
    assert report["tasks"]["mood"]["routed"] == report["tasks"]["mood"]["oracle"]
    assert report["tasks"]["names"]["routed"] == 0
    assert report["tasks"]["ask"]["routed"] == report["tasks"]["ask"]["oracle"], "pairs go to the one that reads them"
    assert report["tasks"]["names"]["n"] == len(HELD["names"])
    rows = [(row.text, row.pair) for row in HELD["names"]]
    found = answer_all(wrong, rows, [1] * len(rows))
    assert all(answer is not None and answer.value in MOOD.labels for answer in found.routed)
    direct = with_router(system, None).predict([text for text, _ in rows], tasks=["names"] * len(rows))
    assert score(NAMES, [p.answer for p in direct], HELD["names"]) == score(NAMES, found.oracle, HELD["names"])


def test_a_row_below_the_threshold_is_not_answered(system: System) -> None:
    shy = with_router(system, Always(0, confidence=0.6, abstain_below=0.7))
    (prediction,) = shy.predict(["the film was dull"])
    assert prediction.task is None and prediction.answer is None and prediction.confidence is None
    assert prediction.to_json()["confidence"] is None and max(prediction.route.values()) == pytest.approx(0.6)
    assert shy.predict(["the film was dull"], tasks=["mood"])[0].answer is not None
    report = score_system(shy, {name: HELD[name] for name in ("mood", "names")}, resamples=20)
    assert report["router"]["abstained"] == 1.0 and report["tasks"]["mood"]["routed"] == 0


def test_top_k_mixes_and_k_of_one_hot_is_the_expert(system: System) -> None:
    texts = [row.text for row in HELD["mood"]]
    sure = with_router(system, Always(0, confidence=1.0, top_k=3)).predict(texts)
    alone = with_router(system, Always(0)).predict(texts)
    mixed = with_router(system, Always(0, confidence=0.4, top_k=3)).predict(texts)
    for one, other, blend in zip(sure, alone, mixed, strict=True):
        assert one.answer is not None and other.answer is not None and blend.answer is not None
        assert one.answer.score == pytest.approx(other.answer.score, abs=1e-5)
        assert blend.answer.score != pytest.approx(other.answer.score, abs=1e-7)


def test_renamed_and_removed_experts_permute_and_renormalise_the_route(system: System) -> None:
    texts, pairs = questions()
    before = system.route(texts, pairs)
    order = [2, 0, 1]
    turned = System(
        system.bases, [system.experts[i] for i in order], system.router, router_base="tiny", classes=system.classes
    )
    for one, other in zip(before, turned.route(texts, pairs), strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    fewer = System(system.bases, system.experts[:2], system.router, router_base="tiny", classes=system.classes)
    for one, other in zip(before, fewer.route(texts, pairs), strict=True):
        whole = one["mood"] + one["names"]
        if whole > 1e-6:
            assert other["mood"] == pytest.approx(one["mood"] / whole, abs=1e-4)
    system.engine = mounted_again(system)


def test_experts_on_several_bases_answer_one_batch(
    trained: Path, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    device = torch.device("cpu")
    second = Base.load(BaseSpec(name="other", path=str(tiny_folder("roberta"))), device=device)
    here = load_trained(trained)
    config = ExpertConfig(rank=3, alpha=8, trunk_depth=1, epochs=3, batch_rows=8, learning_rate=1e-2)
    (names,) = fit_experts(
        second,
        [ExpertPlan(NAMES, config)],
        ROWS,
        HELD,
        options=LoopOptions(tokens_per_batch=256),
    )
    experts: list[Expert] = [here.experts[0], names, here.experts[2]]
    system = System(
        {**here.bases, "other": second},
        experts,
        here.router,
        router_base="tiny",
        classes=here.classes,
        tokens_per_batch=256,
    )
    texts, pairs = questions()
    together = system.predict(texts, pairs)
    assert {prediction.task for prediction in together} == {"mood", "names", "ask"}
    for text, pair, prediction in zip(texts, pairs, together, strict=True):
        same(system.predict([text], [pair])[0], prediction)
    system.save(tmp_path / "s")
    for one, other in zip(System.load(tmp_path / "s").predict(texts, pairs), together, strict=True):
        same(one, other)


@pytest.mark.parametrize("kind", ["centroids", "knn", "arrow", "tfidf", "uniform", "static", "random"])
def test_other_routers_serve_and_are_saved(trained: Path, tmp_path: Path, kind: str) -> None:
    system = load_trained(trained)
    fit_system_router(system, {**SETTINGS, "kind": kind}, RouterRows(ROWS, HELD), seed=0)
    texts, pairs = questions()
    before = system.predict(texts, pairs)
    system.save(tmp_path / "s")
    for one, other in zip(System.load(tmp_path / "s").predict(texts, pairs), before, strict=True):
        same(one, other)
    assert all(sum(p.route.values()) == pytest.approx(1, abs=1e-5) for p in before)


def test_bad_rows_and_unknown_tasks_are_named(system: System) -> None:
    with pytest.raises(DataError, match="text 2 is empty"):
        system.predict(["the film", "  "])
    with pytest.raises(DataError, match="at most 50000"):
        system.predict(["a" * 100_000])
    with pytest.raises(DataError, match=r"U\+0000"):
        system.predict(["a\x00b"])
    with pytest.raises(DataError, match="surrogate"):
        system.predict(["\ud800"])
    with pytest.raises(DataError, match="2 texts, but 1 pairs"):
        system.predict(["a", "b"], ["c"])
    with pytest.raises(DataError, match="one string"):
        system.predict("the film")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"no expert for task 'moods'.*did you mean 'mood'"):
        system.predict(["the film"], tasks=["moods"])
    with pytest.raises(ConfigError, match="no router yet"):
        with_router(system, None, ()).predict(["the film"])


def test_damaged_systems_are_refused(system: System, tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    with pytest.raises(LibraryError, match="no saved system"):
        System.load(tmp_path)
    folder = system.save(tmp_path / "s")
    head = folder / "experts" / "mood" / "head.safetensors"
    whole = head.read_bytes()
    head.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LibraryError, match="truncated or corrupt"):
        System.load(folder)
    head.write_bytes(whole)
    router = folder / "router" / "router.safetensors"
    data = router.read_bytes()
    router.write_bytes(data[:-4] + b"abcd")
    with pytest.raises(RouterError, match="damaged"):
        System.load(folder)
    router.write_bytes(data)
    manifest = json.loads((folder / "system.json").read_text())
    manifest["bases"]["tiny"]["path"] = str(tiny_folder("roberta"))
    (folder / "system.json").write_text(json.dumps(manifest))
    with pytest.raises(LibraryError, match="digest"):
        System.load(folder)


def test_entities_come_with_characters_and_without_punctuation() -> None:
    text = "Anna Lee, of Paris."
    found = entity_list(text, ["B-PER", "I-PER", "O", "B-LOC"])
    assert [(e["type"], e["text"], text[e["start"] : e["end"]]) for e in found] == [
        ("PER", "Anna Lee", "Anna Lee"),
        ("LOC", "Paris", "Paris"),
    ]


def test_expert_is_frozen_data(system: System) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        system.experts[0].name = "x"  # type: ignore[misc]
    assert ASK.head == "span"


def test_a_router_learns_from_short_pieces_and_is_calibrated_on_them(
    tiny_base: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the rows themselves, and not in what is kept of them."""
    base = tiny_base("bert")
    experts = [fresh_expert(base, ExpertPlan(task, ExpertConfig(trunk_depth=2)), seed=0) for task in TASKS]
    system = System({"tiny": base}, experts, None, router_base="tiny", tokens_per_batch=256)
    read: list[tuple[str, str | None]] = []

    def spy(base: Base, router: Router, rows: Sequence[tuple[str, str | None]], **more: int) -> object:
        read.extend(rows)
        return read_rows(base, router, rows, **more)

    monkeypatch.setattr("dynamorouter.system.router.read_rows", spy)
    settings = {**SETTINGS, "epochs": 1, "short_rows": 1.0, "join_pairs": 0.0}
    skills, _ = fit_system_router(system, settings, RouterRows(ROWS, HELD), seed=0)
    pieces = {
        split: [p.text for task in TASKS for p in shortened(task, rows[task.name], share=1.0, seed=0)]
        for split, rows in (("train", ROWS), ("calibrate", HELD))
    }
    rows = sum(len(rows[task.name]) for rows in (ROWS, HELD) for task in TASKS)
    assert pieces["train"] and pieces["calibrate"] and len(read) == rows + sum(map(len, pieces.values()))
    assert {text for texts in pieces.values() for text in texts} <= {text for text, _ in read}
    assert all(len(next(iter(skill.states.values()))) == len(ROWS[name]) for name, skill in skills.items())
