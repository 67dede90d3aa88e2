"""Laws of packed training: an expert learns the same alone, beside others, cut in half, and by PEFT."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModel

from dynamorouter.errors import LibraryError, TrainingError
from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.base import Head, build_head
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.lora.mount import mount
from dynamorouter.model.lora.peft import save_adapter
from dynamorouter.model.text.examples import TrainingExample, make_examples
from dynamorouter.model.text.trunk_cache import TrunkCache
from dynamorouter.tasks.task import Task
from dynamorouter.training.config import ExpertConfig
from dynamorouter.training.experts import CacheOptions, fit_experts, fresh_expert
from dynamorouter.training.learner import ExpertLearner, ExpertPlan
from dynamorouter.training.loop import LoopOptions, PackedLoop
from support.builders import ASK, MOOD, NAMES, TASKS, make_rows
from support.logs import KeptLog

Loader = Callable[..., Base]
ROWS = {task.name: make_rows(task, 21) for task in TASKS}
HELD = {task.name: make_rows(task, 9, start=100) for task in TASKS}


def plan(task: Task, *, depth: int = 0, **changes: Any) -> ExpertPlan:
    settings = {"rank": 2, "alpha": 4, "trunk_depth": depth, "epochs": 2, "batch_rows": 8, **changes}
    return ExpertPlan(task, ExpertConfig(**settings), {"dropout": 0.0})


def train(base: Base, plans: list[ExpertPlan], **options: Any) -> list[Expert]:
    settings: dict[str, Any] = {
        "options": LoopOptions(tokens_per_batch=96),
        **options,
    }
    return fit_experts(base, plans, ROWS, HELD, **settings)


def tensors(expert: Expert) -> list[Tensor]:
    sides = [side for change in expert.factors.values() for side in (change.a, change.b)]
    return [*sides, *expert.head.state_dict().values()]


def largest_gap(one: Expert, other: Expert) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(tensors(one), tensors(other), strict=True))


@pytest.mark.parametrize("depth", [0, 2])
def test_alone_equals_packed(tiny_base: Loader, depth: int) -> None:
    together = train(tiny_base(), [plan(task, depth=depth) for task in TASKS])
    for task, packed in zip(TASKS, together, strict=True):
        (alone,) = train(tiny_base(), [plan(task, depth=depth)])
        assert largest_gap(packed, alone) < 1e-5
        assert max(float(change.b.abs().max()) for change in packed.factors.values()) > 1e-3  # it did learn


@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2"])
def test_gradients_equal_pefts_and_reach_no_other_expert(tiny_base: Loader, architecture: str, tmp_path: Path) -> None:
    base = tiny_base(architecture)
    plans = [plan(MOOD), plan(NAMES)]
    experts = [fresh_expert(base, one, seed=0) for one in plans]
    torch.manual_seed(5)
    experts = [
        dataclasses.replace(
            e, factors={n: type(f)(f.a, 0.1 * torch.randn_like(f.b), f.scaling) for n, f in e.factors.items()}
        )
        for e in experts
    ]
    mounted = mount(base, experts, trainable=True)
    own = make_examples(base, experts[0].head, MOOD, ROWS["mood"][:6], expert=0)
    learners = [
        ExpertLearner(0, plans[0], experts[0].head, mounted, range(len(own)), seed=0),
        ExpertLearner(1, plans[1], experts[1].head, mounted, [0], seed=0),
    ]
    loop = PackedLoop(
        mounted,
        learners,
        own,
        TrunkCache(base, own, depth=0, limit=0, budget=96),
        validators={},
        options=LoopOptions(tokens_per_batch=64),
    )
    for bank in mounted.banks.values():
        bank.requires_grad_(True).base.requires_grad_(False)
    loop._accumulate(learners[:1])

    save_adapter(tmp_path, experts[0].factors, experts[0].lora, base)
    folder = base.spec.path
    oracle = PeftModel.from_pretrained(AutoModel.from_pretrained(folder), tmp_path, is_trainable=True)
    batch = base.encoder.pad([e.ids for e in own], [e.types for e in own], base.device)
    extra = {} if batch.types is None else {"token_type_ids": batch.types}
    hidden = oracle.eval()(input_ids=batch.ids, attention_mask=batch.mask, **extra).last_hidden_state
    experts[0].head.zero_grad()
    experts[0].head.loss(hidden, batch.mask, [e.target for e in own]).mean().backward()
    want = {name: p.grad for name, p in oracle.named_parameters() if p.grad is not None}
    assert len(want) == 2 * len(mounted.banks)
    for name, bank in mounted.banks.items():
        assert bank.a.grad is not None and bank.b.grad is not None
        for side, grad in (("A", bank.a.grad), ("B", bank.b.grad)):
            theirs = want[f"base_model.model.{name}.lora_{side}.default.weight"]
            torch.testing.assert_close(grad[0], theirs, atol=1e-5, rtol=1e-5)
            assert not grad[1].any()
    assert all(p.grad is None for n, p in base.model.named_parameters() if not n.endswith((".a", ".b")))


def test_frozen_weights_stay_to_the_bit(tiny_base: Loader) -> None:
    base = tiny_base()
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    train(base, [plan(task) for task in TASKS])
    after = base.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 3, 5])
@pytest.mark.parametrize("depth", [0, 2])
def test_resumed_equals_uninterrupted_to_the_bit(tiny_base: Loader, tmp_path: Path, stop: int, depth: int) -> None:
    plans = [plan(task, depth=depth, dropout=0.2, loss_weights="uncertainty") for task in (MOOD, NAMES)]
    plans = [dataclasses.replace(p, head_options={"dropout": 0.3}) for p in plans]
    options = LoopOptions(tokens_per_batch=96, checkpoint_every=1)
    whole = train(tiny_base(), plans, options=options)
    count = 0

    def kill() -> None:
        nonlocal count
        count += 1
        if count == stop:
            raise KilledError

    file = tmp_path / "c.checkpoint"
    with pytest.raises(KilledError):
        train(tiny_base(), plans, options=options, checkpoint=file, log=KeptLog(on_saved=kill))
    torch.manual_seed(999)
    resumed = train(tiny_base(), plans, options=options, checkpoint=file)
    for one, other in zip(whole, resumed, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


class KeptNotes:
    """Progress that keeps what is shown beside it."""

    def __init__(self) -> None:
        self.notes: list[str | None] = []

    def start(self, label: str, total: int | None = None, *, unit: str = "rows") -> None:
        """See ``Progress``."""

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """See ``Progress``."""
        self.notes.append(note)


def test_the_training_loss_is_shown_and_logged_also_over_an_interruption(tiny_base: Loader, tmp_path: Path) -> None:
    plans = [plan(MOOD), plan(NAMES, batch_rows=16)]  # 21 rows each: epochs of 3 and of 2 rounds
    options = LoopOptions(tokens_per_batch=96, checkpoint_every=1, log_every=1)
    log, progress = KeptLog(), KeptNotes()
    train(tiny_base(), plans, options=options, log=log, progress=progress)
    by_step = {step: values for _, step, values in log.notes if "loss/mood" in values or "loss/names" in values}
    means = [sum(v for k, v in by_step[step].items() if k.startswith("loss/")) for step in (1, 2)]
    assert progress.notes[:2] == [f"loss {mean / 2:.4f}" for mean in means]
    epochs = [values for _, _, values in log.notes if "epoch_loss/mood" in values]
    rounds = [by_step[step]["loss/mood"] for step in range(1, 7)]
    for epoch, losses in zip(epochs, (rounds[:3], rounds[3:]), strict=True):
        assert epoch["epoch_loss/mood"] == pytest.approx((8 * losses[0] + 8 * losses[1] + 5 * losses[2]) / 21)
    assert len([values for _, _, values in log.notes if "epoch_loss/names" in values]) == 2

    def kill() -> None:
        if len(first.notes) == 3:
            raise KilledError

    first, second, file = KeptLog(on_saved=kill), KeptLog(), tmp_path / "c.checkpoint"
    with pytest.raises(KilledError):
        train(tiny_base(), plans, options=options, log=first, checkpoint=file)
    train(tiny_base(), plans, options=options, log=second, checkpoint=file)
    assert first.notes + second.notes == log.notes


def test_checkpoint_of_other_experts_is_refused(tiny_base: Loader, tmp_path: Path) -> None:
    file = tmp_path / "c.checkpoint"
    train(tiny_base(), [plan(MOOD)], checkpoint=file)
    with pytest.raises(LibraryError, match=r"mood.*not names"):
        train(tiny_base(), [plan(NAMES)], checkpoint=file)


@pytest.mark.parametrize("kept", [0, 5, 1000])
@pytest.mark.parametrize("on_disk", [False, True])
def test_trunk_cache_gives_the_trunks_outputs_within_its_limit(
    tiny_base: Loader, tmp_path: Path, kept: int, on_disk: bool
) -> None:
    base = tiny_base()
    head = fresh_expert(base, plan(ASK), seed=0).head
    examples = make_examples(base, head, ASK, ROWS["ask"], expert=0)
    sizes = [len(example) * base.width * 4 for example in examples]
    file = tmp_path / "trunk" if on_disk else None
    cache = TrunkCache(base, examples, depth=2, limit=sum(sizes[:kept]) + 1, budget=96, file=file)
    cache.fill()
    assert cache.kept == min(kept, len(examples)) and cache.bytes == sum(sizes[: cache.kept])
    assert file is None or not kept or file.stat().st_size == cache.bytes
    for wanted in ([3], [0, 7, 4], list(range(len(examples)))):
        batch = base.encoder.pad([examples[i].ids for i in wanted], [examples[i].types for i in wanted], base.device)
        with torch.no_grad():
            direct = base.forward_to(batch, 2)[2]
        got = cache.fetch(wanted, batch.mask.shape[1])
        torch.testing.assert_close(got[batch.mask.bool()], direct[batch.mask.bool()], atol=1e-5, rtol=1e-5)
    cache.close()
    assert file is None or not file.exists()


def test_trunk_cache_on_disk_trains_the_same_bits_as_in_memory(tiny_base: Loader, tmp_path: Path) -> None:
    (on_disk,) = train(tiny_base(), [plan(ASK, depth=2)], cache=CacheOptions(1 << 30, tmp_path / "trunk"))
    (in_memory,) = train(tiny_base(), [plan(ASK, depth=2)])
    assert largest_gap(on_disk, in_memory) == 0
    assert not list((tmp_path / "trunk").glob("*"))


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(tiny_base: Loader, tmp_path: Path) -> None:
    file = tmp_path / "c.checkpoint"
    options = LoopOptions(tokens_per_batch=96, checkpoint_every=1)
    with pytest.raises(TrainingError, match=r"task 'mood'.*step \d+.*checkpoint.*learning_rate"):
        train(
            tiny_base(),
            [plan(MOOD, learning_rate=1e30, head_learning_rate=1e30, clip=None)],
            options=options,
            checkpoint=file,
        )
    assert file.is_file()


def test_early_stopping_is_each_experts_own_and_the_best_is_kept(tiny_base: Loader) -> None:
    base = tiny_base()
    scores: dict[str, list[float]] = {"mood": [0.5, 0.4, 0.3], "names": [0.1, 0.2, 0.3, 0.4]}
    experts = [fresh_expert(base, plan(task, epochs=4, patience=2), seed=0) for task in (MOOD, NAMES)]
    mounted = mount(base, experts, trainable=True)
    examples: list[TrainingExample] = []
    learners: list[ExpertLearner] = []
    for i, expert in enumerate(experts):
        own = make_examples(base, expert.head, expert.task, ROWS[expert.name], expert=i)
        places = range(len(examples), len(examples) + len(own))
        learners.append(ExpertLearner(i, plan(expert.task, epochs=4, patience=2), expert.head, mounted, places, seed=0))
        examples += own
    seen: dict[str, list[Tensor]] = {}

    def judge(head: Head, index: int) -> float:
        learner = learners[index]
        score = scores[learner.name][learner.progress.epoch]
        if score == max(scores[learner.name]):
            seen[learner.name] = [tensor.clone() for tensor in learner.tensors()]
        return score

    PackedLoop(
        mounted,
        learners,
        examples,
        TrunkCache(base, examples, depth=0, limit=0, budget=96),
        validators={0: judge, 1: judge},
        options=LoopOptions(tokens_per_batch=96),
    ).run()
    assert [learner.progress.epoch for learner in learners] == [3, 4]
    for learner in learners:
        assert all(torch.equal(a, b) for a, b in zip(learner.tensors(), seen[learner.name], strict=True))


def test_adam_equals_the_same_steps_by_hand_under_peft(tiny_base: Loader) -> None:
    """Ten packed steps of a classification expert equal ten steps of PEFT with torch's AdamW on the same batches."""
    base = tiny_base()
    one = plan(MOOD, epochs=1, batch_rows=5, warmup=0.0, patience=0)
    start = fresh_expert(base, one, seed=0)
    oracle = get_peft_model(
        AutoModel.from_pretrained(base.spec.path),
        PeftConfig(r=2, lora_alpha=4, target_modules=sorted(start.factors), lora_dropout=0.0),
    ).eval()
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            if "lora_" in name:
                layer, _, side = name.removeprefix("base_model.model.").partition(".lora_")
                parameter.copy_(getattr(start.factors[layer], side[0].lower()))
    head = build_head(MOOD, base.width, {"dropout": 0.0})
    head.load_state_dict(start.head.state_dict())
    lora = [p for p in oracle.parameters() if p.requires_grad]
    groups = [
        {"params": [*lora, head.get_parameter("out.weight")], "weight_decay": 0.01},
        {"params": [head.get_parameter("out.bias")], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    own = make_examples(base, head, MOOD, ROWS["mood"], expert=0)
    mounted = mount(base, [start], trainable=True)
    learner = ExpertLearner(0, one, start.head, mounted, range(len(own)), seed=0)
    total = math.ceil(len(own) / 5)
    for step in range(total):
        chosen = [own[i] for i in learner.next_batch()]
        batch = base.encoder.pad([e.ids for e in chosen], [e.types for e in chosen], base.device)
        hidden = oracle(input_ids=batch.ids, attention_mask=batch.mask, token_type_ids=batch.types).last_hidden_state
        head.loss(hidden, batch.mask, [e.target for e in chosen]).mean().backward()
        torch.nn.utils.clip_grad_norm_([*lora, *head.parameters()], 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (total - step) / total
        optimizer.step()
        optimizer.zero_grad()
    (packed,) = train(tiny_base(), [one])
    for name, parameter in oracle.named_parameters():
        if "lora_" in name:
            layer, _, side = name.removeprefix("base_model.model.").partition(".lora_")
            torch.testing.assert_close(getattr(packed.factors[layer], side[0].lower()), parameter, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(packed.head.state_dict(), head.state_dict(), atol=2e-5, rtol=1e-4)
