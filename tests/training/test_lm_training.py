"""Laws of experts that write in training: the loss is the text's alone, packed or not, and resumed is uninterrupted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from dynamorouter.errors import ConfigError
from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.base import build_head
from dynamorouter.model.heads.language import LOGITS, end_id
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.lora.mount import mount
from dynamorouter.model.text.examples import TrainingExample, make_examples
from dynamorouter.model.text.packing import Layout, plan_micro_batches
from dynamorouter.model.text.prompts import encode_prompts
from dynamorouter.model.text.trunk_cache import CacheOptions, TrunkCache
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Columns, Generation, Task
from dynamorouter.training.config import ExpertConfig
from dynamorouter.training.experts import fit_experts, fresh_expert
from dynamorouter.training.learner import ExpertLearner, ExpertPlan
from dynamorouter.training.loop import LoopOptions, PackedLoop
from dynamorouter.training.validate import Validator
from support.logs import KeptLog
from support.tinylm import load_lm

Folder = Callable[[str], Path]
WORDS = "the cat sat on a mat and saw one big dog run in the red park by day".split()  # noqa: SIM905


def writing(name: str, *, head: str = "causal_lm", most: int = 24) -> Task:
    columns = Columns(text="text", target="target", pair="pair")
    return Task(
        name=name,
        head=head,
        columns=columns,
        metrics=("lm_loss",),
        max_tokens=48,
        stride=0,
        generation=Generation(max_new_tokens=most),
    )


def rows(task: Task, count: int, *, start: int = 0) -> list[Record]:
    found = []
    for i in range(start, start + count):
        text = " ".join(WORDS[(i * 5 + j * 3) % len(WORDS)] for j in range(1 + 8 * (i % 4 == 0)))
        said = " ".join(WORDS[(i * 7 + j) % len(WORDS)] for j in range(1 + i % 3))
        found.append(Record(text, None if i % 5 else "a dog", 0, task.name, {"texts": [said]}, str(i)))
    return found


ONE, TWO = writing("one"), writing("two")
ROWS = {"one": rows(ONE, 13), "two": rows(TWO, 13, start=40)}
HELD = {"one": rows(ONE, 5, start=100), "two": rows(TWO, 5, start=140)}


def plan(task: Task, *, depth: int = 0, **changes: object) -> ExpertPlan:
    settings = {"rank": 2, "alpha": 4, "trunk_depth": depth, "epochs": 2, "batch_rows": 4, **changes}
    return ExpertPlan(task, ExpertConfig(**settings))  # type: ignore[arg-type]


def train(base: Base, plans: list[ExpertPlan], **options: object) -> list[Expert]:
    settings = {"options": LoopOptions(tokens_per_batch=128), **options}
    return fit_experts(base, plans, ROWS, HELD, **settings)  # type: ignore[arg-type]


def largest_gap(one: Expert, other: Expert) -> float:
    return max(
        float((getattr(mine, side) - getattr(theirs, side)).abs().max())
        for mine, theirs in zip(one.factors.values(), other.factors.values(), strict=True)
        for side in ("a", "b")
    )


def lively(base: Base, plans: list[ExpertPlan]) -> list[Expert]:
    """Return fresh experts that change something."""
    torch.manual_seed(5)
    return [
        dataclasses.replace(
            e, factors={n: type(f)(f.a, 0.1 * torch.randn_like(f.b), f.scaling) for n, f in e.factors.items()}
        )
        for e in (fresh_expert(base, one, seed=0) for one in plans)
    ]


def loop_over(
    base: Base, plans: list[ExpertPlan], experts: list[Expert], *, packing: bool, depth: int = 0
) -> PackedLoop:
    mounted = mount(base, experts, trainable=True)
    examples: list[TrainingExample] = []
    learners = []
    for index, (one, expert) in enumerate(zip(plans, experts, strict=True)):
        own = make_examples(base, expert.head, one.task, ROWS[one.task.name], expert=index)
        places = range(len(examples), len(examples) + len(own))
        examples += own
        learners.append(ExpertLearner(index, one, expert.head, mounted, places, seed=0))
    cache = TrunkCache(base, examples, depth=depth, limit=1 << 20, budget=128)
    cache.fill()
    options = LoopOptions(tokens_per_batch=128, packing=packing)
    return PackedLoop(mounted, learners, examples, cache, validators={}, options=options)


def gradients(loop: PackedLoop, learners: list[ExpertLearner]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    for bank in loop.mounted.banks.values():
        bank.requires_grad_(True).base.requires_grad_(False)
    losses = loop._accumulate(learners)
    found = {}
    for name, bank in loop.mounted.banks.items():
        assert bank.a.grad is not None and bank.b.grad is not None
        found[f"{name}.a"], found[f"{name}.b"] = bank.a.grad.clone(), bank.b.grad.clone()
        bank.a.grad = bank.b.grad = None
    return losses, found


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_loss_is_the_mean_over_the_texts_tokens_and_their_end(lm_folder: Folder, architecture: str) -> None:
    base = load_lm(lm_folder(architecture))
    head = build_head(ONE, base.width)
    examples = make_examples(base, head, ONE, ROWS["one"], expert=0)
    with torch.no_grad():
        layout = Layout.of(examples, [[i] for i in range(len(examples))])
        batch = layout.batch(base)
        total = head.loss(base.forward(batch, None), batch.mask, [e.target for e in examples]).sum()
        sums, count = 0.0, 0
        for example, record in zip(examples, ROWS["one"], strict=True):
            prompt = encode_prompts(base, [(record.text, record.pair)], form="plain", room=48)[0].ids
            assert isinstance(record.target, dict)
            said = [*base.encoder.encode(record.target["texts"], special=False)[0].ids, end_id(base)]
            assert list(example.ids) == [*prompt, *said] and example.units == len(said)
            ids = torch.tensor([[*prompt, *said]])
            logits = base.parts.language(input_ids=ids).logits[0, len(prompt) - 1 : -1]
            sums += float(functional.cross_entropy(logits, torch.tensor(said), reduction="sum"))
            count += len(said)
    assert float(total) / sum(e.units for e in examples) == pytest.approx(sums / count, abs=1e-5)


def test_the_loss_of_an_encoder_decoder_is_the_models_own(lm_folder: Folder) -> None:
    base = load_lm(lm_folder("t5"))
    task = writing("one", head="seq2seq")
    head = build_head(task, base.width)
    examples = make_examples(base, head, task, ROWS["one"][:4], expert=0)
    held = Validator(base, task, ROWS["one"][:4], depth=0, budget=64, cache=CacheOptions(), select_by="loss")
    labels = torch.nn.utils.rnn.pad_sequence(
        [torch.as_tensor(e.target) for e in examples], batch_first=True, padding_value=-100
    )
    batch = base.encoder.pad([e.ids for e in examples], [e.types for e in examples], base.device)
    with torch.no_grad():
        want = base.parts.language(input_ids=batch.ids, attention_mask=batch.mask, labels=labels).loss
    assert held(head, -1) == pytest.approx(-float(want), abs=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("depth", [0, 1])
def test_packed_rows_give_the_same_loss_and_gradients(lm_folder: Folder, architecture: str, depth: int) -> None:
    base = load_lm(lm_folder(architecture))
    plans = [plan(task, depth=depth, batch_rows=13) for task in (ONE, TWO)]
    found = []
    for packing in (False, True):
        loop = loop_over(base, plans, lively(base, plans), packing=packing, depth=depth)
        found.append(gradients(loop, loop.learners))
    lengths = [len(example) for example in loop.examples]
    passes = plan_micro_batches(loop.examples, range(len(lengths)), budget=128, packing=True)
    laid = [row for rows_ in passes for row in rows_]
    assert sorted(i for row in laid for i in row) == list(range(len(lengths)))
    assert len(laid) <= len(lengths) / 1.5  # rows are shared
    assert all(len({loop.examples[i].expert for i in row}) == 1 for row in laid)
    (plain, want), (packed, got) = found
    assert packed == pytest.approx(plain, abs=1e-5)
    for name in want:
        torch.testing.assert_close(got[name], want[name], atol=1e-5, rtol=1e-5)
        assert float(want[name].abs().max()) > 1e-6


def test_gradients_reach_the_right_expert_alone(lm_folder: Folder) -> None:
    base = load_lm(lm_folder("gpt2"))
    plans = [plan(ONE), plan(TWO)]
    loop = loop_over(base, plans, lively(base, plans), packing=True)
    _, found = gradients(loop, loop.learners[:1])
    assert all(bool(grad[0].any()) and not grad[1].any() for grad in found.values())


@pytest.mark.parametrize("depth", [0, 1])
def test_alone_equals_beside_others_and_resumed_equals_uninterrupted(
    lm_folder: Folder, tmp_path: Path, depth: int
) -> None:
    plans = [plan(task, depth=depth) for task in (ONE, TWO)]
    options = LoopOptions(tokens_per_batch=128, checkpoint_every=1, packing=True)
    whole = train(load_lm(lm_folder("gpt2")), plans, options=options)
    (alone,) = train(load_lm(lm_folder("gpt2")), plans[:1], options=options)
    assert largest_gap(whole[0], alone) < 1e-5
    assert max(float(change.b.abs().max()) for change in alone.factors.values()) > 1e-3  # it did learn
    count = 0

    class KilledError(Exception):
        pass

    def kill() -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KilledError

    file = tmp_path / "c.checkpoint"
    with pytest.raises(KilledError):
        train(load_lm(lm_folder("gpt2")), plans, options=options, checkpoint=file, log=KeptLog(on_saved=kill))
    torch.manual_seed(999)
    resumed = train(load_lm(lm_folder("gpt2")), plans, options=options, checkpoint=file)
    assert all(largest_gap(one, other) == 0 for one, other in zip(whole, resumed, strict=True))


def test_training_lowers_the_held_out_loss_on_every_kind_of_base(lm_folder: Folder) -> None:
    for architecture, head in (("gpt2", "causal_lm"), ("t5", "seq2seq")):
        base = load_lm(lm_folder(architecture))
        task = writing("one", head=head)
        held = Validator(base, task, ROWS["one"], depth=0, budget=128, cache=CacheOptions(), select_by="loss")
        before = held(build_head(task, base.width), -1)
        (expert,) = fit_experts(
            base,
            [plan(task, epochs=6, learning_rate=2e-2)],
            ROWS,
            {"one": ROWS["one"]},
            options=LoopOptions(tokens_per_batch=128),
        )
        with mount(base, [expert]):
            assert held(expert.head, 0) > before + 0.1
            assert expert.card["training"]["select_score"] == pytest.approx(held(expert.head, 0), abs=1e-5)


def test_a_large_vocabulary_is_told_in_parts_with_the_same_gradient(
    lm_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_lm(lm_folder("gpt2"))
    plans = [plan(ONE, batch_rows=13)]
    found = []
    for most in (LOGITS, 3 * base.config.vocab_size):
        monkeypatch.setattr("dynamorouter.model.heads.language.LOGITS", most)
        loop = loop_over(base, plans, lively(base, plans), packing=False)
        found.append(gradients(loop, loop.learners)[1])
    for name, want in found[0].items():
        torch.testing.assert_close(found[1][name], want, atol=1e-6, rtol=1e-5)


def test_the_prompt_is_cut_and_not_the_text(lm_folder: Folder) -> None:
    base = load_lm(lm_folder("gpt2"))
    task = writing("one", most=12).model_copy(update={"max_tokens": 10})
    long = Record("cat " * 50, None, 0, "one", {"texts": ["the red dog"]}, "0")
    wordy = Record("cat", None, 0, "one", {"texts": ["dog " * 50]}, "1")
    head: Any = build_head(task, base.width)
    first, second = head.examples(base, task, [long, wordy], max_tokens=task.max_tokens)
    said = head.completions(["the red dog", "dog " * 50])
    assert list(first.target[1:]) == said[0] and first.target[0] <= 10 and first.cut[0] > 0 and first.cut[1] == 0
    assert len(second.ids) == 22 and second.cut == (0, len(said[1]) - len(second.target) + 1)
    assert np.array_equal(second.target[1:], said[1][: len(second.target) - 1])


def test_a_head_on_the_wrong_kind_of_base_is_refused(lm_folder: Folder) -> None:
    base = load_lm(lm_folder("t5"))
    with pytest.raises(ConfigError, match=r"causal_lm head generates on a base of kind 'decoder'.*'seq2seq'"):
        make_examples(base, build_head(ONE, base.width), ONE, ROWS["one"], expert=0)
    mood = Task(
        name="mood", head="classification", columns=Columns(text="text", target="label"), labels=("bad", "good")
    )
    with pytest.raises(ConfigError, match="encoder-decoder"):
        make_examples(base, build_head(mood, base.width), mood, [Record("a", None, 0, "mood", "bad", "0")], expert=0)
