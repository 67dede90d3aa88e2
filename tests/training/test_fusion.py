"""Laws of AdapterFusion: the dense reference, nothing frozen trained, rows kept apart, saved equals loaded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynamorouter.errors import BankShapeError, ConfigError, LibraryError, TrainingError
from dynamorouter.inference.policy import Assignment
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.config import BaseSpec
from dynamorouter.model.lora.bank import LoraBank
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.lora.fusion import FusionLayer
from dynamorouter.model.lora.gates import FusionGate, SoftGate
from dynamorouter.model.lora.mount import Mounted, mount
from dynamorouter.runs import phases as pipeline
from dynamorouter.runs.run import open_run
from dynamorouter.system import edit
from dynamorouter.system.router import RouterRows, fit_system_router
from dynamorouter.system.system import System
from dynamorouter.training.config import ExpertConfig, FusionConfig
from dynamorouter.training.experts import CacheOptions, fit_experts
from dynamorouter.training.fusion import fit_fusions
from dynamorouter.training.learner import ExpertPlan
from dynamorouter.training.log import UNLOGGED, TrainingLog
from dynamorouter.training.loop import LoopOptions
from dynamorouter.utils.files import read_json, read_tensors, write_tensors
from support.banks import EXPERTS, OUT, RANK, WIDTH, make_bank, pass_over
from support.builders import NAMES, TASKS, make_rows
from support.logs import KeptLog
from support.systems import HELD, ROWS, SETTINGS, mounted_again, questions, same
from support.tinyrun import lines, settings, weights

OPTIONS = LoopOptions(tokens_per_batch=256, log_every=2)
CONFIG = FusionConfig(sources=("names", "mood"), epochs=2, learning_rate=0.01, key_width=4, batch_rows=8)
FUSION = "experts.fusion={mood: {epochs: 2, learning_rate: 0.02, batch_rows: 8}, names: {sources: [ask, names]}}"


# -- the layer ------------------------------------------------------------------------------------------------------


def make_layer(experts: int, *, rank: int = RANK, trained: bool = True) -> FusionLayer:
    layer = FusionLayer(WIDTH, experts=experts, rank=rank, key_width=5).double()
    layer.initialise(torch.Generator().manual_seed(1))
    if trained:
        with torch.no_grad():
            layer.query.normal_(generator=torch.Generator().manual_seed(2))
    return layer


def slow(bank: LoraBank, layer: FusionLayer, x: Tensor, sources: list[int]) -> Tensor:
    """The plain reference: one position and one expert at a time."""
    rows = []
    for at in x.reshape(-1, WIDTH):
        inner = [bank.a[e] @ at for e in sources]
        scores = [(at @ layer.query) @ (h[: layer.rank] @ layer.key[i]) for i, h in enumerate(inner)]
        chances = (torch.stack(scores) / math.sqrt(layer.query.shape[1])).softmax(0)
        parts = [w * bank.scaling[e] * (bank.b[e] @ h) for w, e, h in zip(chances, sources, inner, strict=True)]
        rows.append(bank.base(at) + torch.stack(parts).sum(0))
    return torch.stack(rows).view(*x.shape[:-1], OUT)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("sources", [[0, 1, 2, 3, 4], [3, 1]])
def test_it_equals_the_dense_reference_with_its_gradients(kind: str, sources: list[int]) -> None:
    bank, layer = make_bank(kind), make_layer(len(sources))
    x = torch.randn(3, 4, WIDTH, dtype=torch.float64, requires_grad=True)
    out = torch.randn(3, 4, OUT, dtype=torch.float64)
    gate = FusionGate({"": layer}, torch.tensor(sources), rows=3)
    with pass_over(bank).hold(gate):
        got = bank(x)
    want = slow(bank, layer, x, sources)
    torch.testing.assert_close(got, want)
    wanted = [x, bank.a, bank.b, layer.query, layer.key]
    for mine, plain in zip(
        torch.autograd.grad((got * out).sum(), wanted), torch.autograd.grad((want * out).sum(), wanted), strict=True
    ):
        torch.testing.assert_close(mine, plain)
    with torch.no_grad(), pass_over(bank).hold(gate):
        torch.testing.assert_close(bank(x[:, 0]), want[:, 0])


def test_it_starts_as_the_uniform_mixture() -> None:
    bank, layer = make_bank(), make_layer(2, trained=False)
    x = torch.randn(3, 4, WIDTH, dtype=torch.float64)
    weights = torch.zeros(3, EXPERTS, dtype=torch.float64)
    weights[:, [1, 4]] = 0.5
    with pass_over(bank).hold(FusionGate({"": layer}, torch.tensor([4, 1]), rows=3)):
        got = bank(x)
    with pass_over(bank).hold(SoftGate(weights)):
        torch.testing.assert_close(got, bank(x))


def test_a_bank_of_larger_rank_changes_nothing_and_other_layers_are_the_bases() -> None:
    bank, layer = make_bank(), make_layer(2, rank=RANK - 1)
    x = torch.randn(2, 3, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        bank.a[:2, -1] = 0
        bank.b[:2, :, -1] = 0
        with pass_over(bank).hold(FusionGate({"": layer}, torch.tensor([0, 1]), rows=2)):
            torch.testing.assert_close(bank(x), slow(bank, layer, x, [0, 1]))
        with pass_over(bank).hold(FusionGate({"other": layer}, torch.tensor([0, 1]), rows=2)):
            assert torch.equal(bank(x), bank.base(x))


@pytest.mark.parametrize(("sources", "rows", "words"), [([0, 9], 2, "expert 9.*holds 5"), ([0, 1], 3, "3 rows.*has 2")])
def test_wrong_gates_are_named(sources: list[int], rows: int, words: str) -> None:
    bank = make_bank()
    gate = FusionGate({"": make_layer(2)}, torch.tensor(sources), rows=rows)
    with pytest.raises(BankShapeError, match=words), pass_over(bank).hold(gate):
        bank(torch.ones(2, 1, WIDTH, dtype=torch.float64))


# -- training and the system ----------------------------------------------------------------------------------------


def tiny(folder: Callable[[str], Path], name: str = "tiny", kind: str = "bert") -> Base:
    return Base.load(BaseSpec(name=name, path=str(folder(kind))), device=torch.device("cpu"))


def train(base: Base, *, depth: int = 2, epochs: int = 4) -> list[Expert]:
    config = ExpertConfig(rank=2, alpha=8, trunk_depth=depth, epochs=epochs, batch_rows=8, learning_rate=1e-2)
    plans = [ExpertPlan(task, config) for task in TASKS]
    return fit_experts(base, plans, ROWS, HELD, options=OPTIONS)


def fuse(
    base: Base,
    experts: list[Expert],
    fusions: Mapping[str, FusionConfig] | None = None,
    *,
    log: TrainingLog = UNLOGGED,
    **more: object,
) -> list[Expert]:
    fusions = fusions or {"mood": CONFIG}
    return fit_fusions({"tiny": base}, experts, fusions, ROWS, HELD, options=OPTIONS, log=log, **more)  # type: ignore[arg-type]


def held_back(expert: Expert) -> Expert:
    """An expert whose own head is of no use, so that a fusion is kept."""
    with torch.no_grad():
        for parameter in expert.head.parameters():
            parameter.zero_()
    return expert


@pytest.fixture(scope="module")
def system(tiny_folder: Callable[[str], Path]) -> System:
    """A system over two tasks of which each has a fusion."""
    base = tiny(tiny_folder)
    experts = [held_back(expert) if expert.name != "ask" else expert for expert in train(base)]
    fused = fuse(base, experts, {"mood": CONFIG, "names": CONFIG.model_copy(update={"sources": None})})
    assert [expert.fusion is not None for expert in fused] == [True, True, False]
    found = System({"tiny": base}, fused, None, router_base="tiny", tokens_per_batch=256)
    fit_system_router(found, SETTINGS, RouterRows(ROWS, HELD), seed=0)
    return found


def test_training_changes_nothing_frozen_and_is_the_same_every_time(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts: list[Mounted] = []

    def watched(*args: Any, **options: Any) -> Mounted:
        mounts.append(mount(*args, **options))
        return mounts[-1]

    monkeypatch.setattr("dynamorouter.training.fusion.mount", watched)
    base = tiny(tiny_folder)
    experts = train(base)
    frozen = {name: value.clone() for name, value in base.model.state_dict().items() if ".a" != name[-2:] != ".b"}
    factors = {
        (e.name, layer, side): getattr(f, side).clone()
        for e in experts
        for layer, f in e.factors.items()
        for side in "ab"
    }
    heads = {(e.name, key): value.clone() for e in experts for key, value in e.head.state_dict().items()}
    held_back(experts[0])
    log = KeptLog()
    (first, *others) = fuse(base, experts, log=log)
    torch.manual_seed(99)
    disk = CacheOptions(limit=1 << 22, folder=tmp_path)
    both = fuse(base, experts, {"names": CONFIG, "mood": CONFIG}, cache=disk)
    assert first.fusion is not None and both[0].fusion is not None
    for key, value in first.fusion.state().items():
        assert torch.equal(value, both[0].fusion.state()[key]), key
    assert any(bool(layer.query.abs().max() > 0) for layer in first.fusion.layers.values())
    now = base.model.state_dict()
    assert all(torch.equal(value, now[name]) for name, value in frozen.items())
    for index, expert in enumerate(experts):
        for layer, bank in mounts[-1].banks.items():
            back = bank.get(index, 2)
            assert torch.equal(back.a, factors[expert.name, layer, "a"])
            assert torch.equal(back.b, factors[expert.name, layer, "b"])
    for expert in others:
        assert all(torch.equal(heads[expert.name, key], value) for key, value in expert.head.state_dict().items())
    notes = first.card["training"]["fusion"]
    assert notes["kept"] and notes["select_score"] >= notes["plain_select_score"]
    assert {part for part, _, _ in log.notes} == {"fusion of mood"}
    values = [values for _, _, values in log.notes]
    assert values[-1]["kept"] and values[-1]["plain_select_score"] == pytest.approx(
        notes["plain_select_score"], abs=1e-6
    )
    assert any("loss/mood" in line for line in values) and list(tmp_path.iterdir()) == []


def test_a_fusion_that_is_worse_is_not_kept(tiny_folder: Callable[[str], Path]) -> None:
    base = tiny(tiny_folder)
    experts = train(base, depth=0, epochs=8)
    found = fuse(base, experts, {"names": CONFIG.model_copy(update={"epochs": 1, "learning_rate": 1e-9})})[1]
    notes = found.card["training"]["fusion"]
    assert found.fusion is None and not notes["kept"] and notes["select_score"] < notes["plain_select_score"]


def test_a_loss_that_is_no_number_is_an_error(tiny_folder: Callable[[str], Path]) -> None:
    base = tiny(tiny_folder)
    with pytest.raises(TrainingError, match=r"fusion of task 'mood'.*experts.fusion.mood.learning_rate"):
        fuse(base, train(base, epochs=1), {"mood": CONFIG.model_copy(update={"learning_rate": 1e36, "epochs": 4})})


def test_a_mixed_batch_equals_rows_alone(system: System) -> None:
    texts, pairs = questions()
    together = system.predict(texts, pairs)
    assert {prediction.task for prediction in together} == {"mood", "names", "ask"}
    for text, pair, prediction in zip(texts, pairs, together, strict=True):
        same(system.predict([text], [pair])[0], prediction)
    given = system.predict(texts, pairs, [prediction.task for prediction in together])
    for one, other in zip(given, together, strict=True):
        assert one.answer is not None and other.answer is not None
        assert one.answer.value == other.answer.value
        assert one.answer.score == pytest.approx(other.answer.score, abs=1e-4)


def test_the_fusion_answers_in_the_experts_place(system: System) -> None:
    plain = System(
        system.bases,
        [dataclasses.replace(expert, fusion=None) for expert in system.experts],
        None,
        router_base="tiny",
    )
    texts = [row.text for row in HELD["mood"]]
    scores = [p.answer.score for p in plain.predict(texts, tasks=["mood"] * len(texts)) if p.answer]
    assert scores == pytest.approx([0.5] * len(texts))  # its own head is zero
    system.engine = mounted_again(system)
    scores = [p.answer.score for p in system.predict(texts, tasks=["mood"] * len(texts)) if p.answer]
    assert all(score != pytest.approx(0.5, abs=1e-4) for score in scores)


def test_the_trunk_runs_once_and_a_mixture_leaves_fused_rows_alone(system: System) -> None:
    texts, pairs = questions()
    rows = list(zip(texts[:-2], pairs[:-2], strict=True))  # without the long ones
    base = system.bases["tiny"]
    passes = [0] * base.depth
    hooks = [
        block.register_forward_hook(lambda *_, i=i: passes.__setitem__(i, passes[i] + 1))
        for i, block in enumerate(base.blocks)
    ]
    for positions, chunk in system.engine.chunks(rows):
        experts = [i % 3 for i in range(len(positions))]
        alone = system.engine.answer(chunk, Assignment.fixed(experts))
        assert passes[:2] == [1, 1] and passes[2] == passes[3] == min(3, len(positions))
        chosen = torch.tensor([[0, 2]]).expand(len(positions), -1)
        mixture = chosen, torch.full(chosen.shape, 0.5)
        mixed = system.engine.answer(chunk, Assignment.fixed(experts, mixture))
        assert [a for a, e in zip(alone, experts, strict=True) if e < 2] == [
            a for a, e in zip(mixed, experts, strict=True) if e < 2
        ]
        passes[:] = [0] * base.depth
    for hook in hooks:
        hook.remove()


def test_saved_equals_loaded_and_damage_is_named(system: System, tmp_path: Path) -> None:
    system.save(tmp_path / "s")
    again = System.load(tmp_path / "s")
    texts, pairs = questions()
    for one, other in zip(system.predict(texts, pairs), again.predict(texts, pairs), strict=True):
        same(one, other, tolerance=1e-6)
    card = read_json(tmp_path / "s" / "experts" / "mood" / "card.json")
    assert card["fusion"]["sources"] == ["names", "mood"] and card["training"]["fusion"]["kept"]
    again.save(tmp_path / "t")
    assert weights(tmp_path / "s" / "experts") == weights(tmp_path / "t" / "experts")
    path = tmp_path / "s" / "experts" / "mood" / "fusion.safetensors"
    whole = read_tensors(path)
    lost = next(key for key in whole if key.endswith("/key"))
    write_tensors(path, {key: value for key, value in whole.items() if key != lost})
    with pytest.raises(LibraryError, match=r"needs a query.*damaged"):
        System.load(tmp_path / "s")
    write_tensors(path, {key: value for key, value in whole.items() if not key.startswith("head/")})
    with pytest.raises(LibraryError, match="the head needs"):
        System.load(tmp_path / "s")


def test_a_source_cannot_be_removed_or_missing(system: System, tmp_path: Path) -> None:
    system.save(tmp_path / "s")
    with pytest.raises(LibraryError, match="expert 'ask' is mixed by the fusion that answers task 'names'"):
        edit.remove_expert(tmp_path / "s", "ask")
    with pytest.raises(LibraryError, match=r"expert 'mood' mixes mood, names, but base 'tiny' has no expert 'names'"):
        System(system.bases, [system.experts[0]], None, router_base="tiny")
    system.engine = mounted_again(system)


def test_an_expert_can_be_added_beside_it(system: System, tmp_path: Path) -> None:
    """A new expert of larger rank in the first place, on more layers: sources are found by name."""
    texts = [row.text for row in HELD["names"]]
    before = system.predict(texts, tasks=["names"] * len(texts))
    config = ExpertConfig(rank=5, alpha=8, trunk_depth=0, epochs=1, batch_rows=8)
    new = NAMES.model_copy(update={"name": "more"})
    plan = ExpertPlan(new, config)
    base = system.bases["tiny"]
    rows = {"more": make_rows(NAMES, 8)}
    (expert,) = fit_experts(base, [plan], rows, rows, options=OPTIONS)
    grown = System(system.bases, [expert, *system.experts], None, router_base="tiny")
    for one, other in zip(before, grown.predict(texts, tasks=["names"] * len(texts)), strict=True):
        same(one, other)
    system.engine = mounted_again(system)


def test_experts_are_added_and_removed_on_disk(system: System, home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    system.save(folder)
    new = NAMES.model_copy(update={"sources": {"local": {}}})
    edit.add_expert(folder, folder / "experts" / "names", name="more", task=new, data=home / "rows")
    grown = System.load(folder)
    texts = [row.text for row in HELD["mood"]]
    assert grown.classes == ["mood", "names", "ask", "more"]
    for one, other in zip(
        system.predict(texts, tasks=["mood"] * 12), grown.predict(texts, tasks=["mood"] * 12), strict=True
    ):
        same(one, other)
    edit.remove_expert(folder, "more")
    assert System.load(folder).names == ["mood", "names", "ask"]


# -- runs -----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill."""


@pytest.mark.e2e
def test_a_run_has_it_and_resumed_it_ends_with_the_same_bits(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(home, "joint.enabled=false", "experts.epochs=1", FUSION)
    outs = [tmp_path / "whole", tmp_path / "resumed"]
    for out in outs:
        open_run(config, out, resume=False)
    pipeline.run(config, outs[0])
    with monkeypatch.context() as patch:

        def killed(*args: object, **kwargs: object) -> None:
            raise Killed

        patch.setattr("dynamorouter.training.fusion.FusionTraining._step", killed)
        with pytest.raises(Killed):
            pipeline.run(config, outs[1])
    pipeline.run(config, outs[1])
    assert weights(outs[0] / "system") == weights(outs[1] / "system")
    assert lines(outs[0] / "log.jsonl") == lines(outs[1] / "log.jsonl")
    noted = {line["part"]: line for line in lines(outs[0] / "log.jsonl") if "plain_select_score" in line}
    assert set(noted) == {"fusion of mood", "fusion of names"}
    for expert in System.load(outs[0] / "system").experts:
        kept = bool(noted.get(f"fusion of {expert.name}", {}).get("kept"))
        assert (expert.fusion is not None) == kept
        assert ("fusion" in expert.card["training"]) == (expert.name != "ask")


@pytest.mark.e2e
def test_after_the_joint_phase_it_is_trained_anew(home: Path, tmp_path: Path) -> None:
    config = settings(home, "experts.epochs=1", "router.epochs=1", FUSION)
    open_run(config, tmp_path / "run", resume=False)
    pipeline.run(config, tmp_path / "run")
    noted = [line["phase"] for line in lines(tmp_path / "run" / "log.jsonl") if "plain_select_score" in line]
    assert noted == ["experts", "experts", "joint", "joint"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("experts.fusion={mood: {epohcs: 2}}", "experts.fusion.mood.epohcs: unknown key"),
        ("experts.fusion={mood: {key_width: 0}}", "experts.fusion.mood.key_width: got 0"),
        ("experts.fusion={mood: {sources: [mood, aks]}}", "experts.fusion.mood.sources: no such task 'aks'"),
        ("experts.fusion={mood: {sources: [mood]}}", "at least 2 items"),
        ("experts.fusion={mood: {sources: [ask, ask]}}", "listed twice"),
        ("task=[mood] joint.enabled=false experts.fusion={mood: {}}", "'mood' is the only task on base 'tiny'"),
        (
            "bases.o={name: o, path: x} task.ask.base=o joint.enabled=false experts.fusion.mood.sources=[ask, mood]",
            "task 'ask' sits on base 'o', and 'mood' on 'tiny'",
        ),
    ],
)
def test_mistakes_in_its_settings_are_named(home: Path, words: str, expected: str) -> None:
    parts = words.replace(", ", ",").replace(": ", ":").split()
    with pytest.raises(ConfigError) as found:
        settings(home, *parts)
    assert expected in str(found.value)
