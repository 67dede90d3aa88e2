"""The complexity router: its losses, what it reads, and what the joint phase does to it and to the experts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dynamorouter.errors import RouterError, TrainingError
from dynamorouter.model.base.base import Base
from dynamorouter.routing.base import RouterData, RouterInput
from dynamorouter.routing.complexity import TierRouter, balance_loss, squared_error
from dynamorouter.routing.serialization import load, save
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Columns, Generation, Task
from dynamorouter.training.config import ExpertConfig, JointConfig, JointOrder
from dynamorouter.training.experts import fresh_expert
from dynamorouter.training.joint import JointRouter, fit_joint
from dynamorouter.training.learner import ExpertPlan
from dynamorouter.training.loop import LoopOptions
from support.tinylm import load_lm, write_lm

WIDTH = 8
TASKS = [
    Task(
        name=name,
        head="causal_lm",
        columns=Columns(text="instruction", target="output", pair="input", extra={"complexity": "complexity"}),
        metrics=("perplexity",),
        max_tokens=40,
        stride=8,
        generation=Generation(max_new_tokens=8),
    )
    for name in ("simple", "complex")
]


def rows(count: int, *, seed: int = 0) -> tuple[RouterInput, Tensor, Tensor]:
    """Return rows whose tier and complexity shift their states."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 3
    scores = (targets + torch.rand(count, generator=generator)) / 3
    centres = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(9))
    states = torch.randn(count, 5, WIDTH, generator=generator) * 0.3
    states = states + scores[:, None, None] * centres[0] * 4 + targets[:, None, None] * centres[1]
    return RouterInput({1: states}, torch.ones(count, 5), [("", None)] * count), targets, scores


def fitted(scores: bool = True, **options: object) -> TierRouter:
    batch, targets, known = rows(120)
    router = TierRouter(layers=(1,), hidden=16, batch_rows=16, learning_rate=0.01, **options)  # type: ignore[arg-type]
    complexities = known if scores else None
    generator = torch.Generator().manual_seed(1)
    router.fit(RouterData([batch], targets, generator=generator, experts=3, complexities=complexities))
    return router


def test_balance_loss_is_the_divergence_from_the_prior() -> None:
    prior = torch.tensor([0.5, 0.3, 0.2])
    assert float(balance_loss(prior.expand(4, 3), prior)) == pytest.approx(0.0, abs=1e-6)
    halves = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.4]])  # the mean is the prior, no row is
    assert float(balance_loss(halves, prior)) == pytest.approx(0.0, abs=1e-6)
    even = torch.full((2, 3), 1 / 3)
    wanted = sum(p * math.log(3 * p) for p in (0.5, 0.3, 0.2))
    assert float(balance_loss(even, prior)) == pytest.approx(wanted, abs=1e-6)
    assert float(balance_loss(even, torch.tensor([0.5, 0.5, 0.0]))) == pytest.approx(math.log(1.5), abs=1e-6)


def test_squared_error_leaves_unknown_scores_out() -> None:
    nan = math.nan
    assert float(squared_error(torch.tensor([0.5, 0.9]), torch.tensor([0.1, nan]))) == pytest.approx(0.16)
    assert float(squared_error(torch.tensor([0.5]), torch.tensor([nan]))) == 0.0
    estimates = torch.tensor([0.5, 0.9], requires_grad=True)
    squared_error(estimates, torch.tensor([0.1, nan])).backward()  # type: ignore[no-untyped-call]
    assert estimates.grad is not None and estimates.grad.tolist() == pytest.approx([0.8, 0.0])


def test_the_loss_is_the_sum_of_its_three_parts() -> None:
    router = fitted()
    batch, targets, scores = rows(9, seed=3)
    logits, loss = router.losses(batch, targets, scores)
    cross = torch.nn.functional.cross_entropy(logits, targets)
    error = ((router.complexity(batch) - scores) ** 2).mean()
    assert router.module.prior is not None
    balance = balance_loss(logits.softmax(dim=1), router.module.prior)
    torch.testing.assert_close(loss, cross + 0.1 * error + 0.1 * balance)


def test_complexity_is_learned_and_kept_on_disk(tmp_path: Path) -> None:
    router = fitted(complexity_weight=5.0)
    batch, targets, scores = rows(60, seed=5)
    assert float(((router.complexity(batch) - scores) ** 2).mean()) < 0.01 < float(scores.var())
    assert float((router.route(batch).experts[:, 0] == targets).double().mean()) > 0.9
    assert router.module.prior is not None and router.module.prior.tolist() == pytest.approx([1 / 3] * 3)
    save(router, tmp_path)
    again = load(tmp_path)
    assert isinstance(again, TierRouter)
    assert torch.equal(again.complexity(batch), router.complexity(batch))


def test_the_router_reads_states_alone() -> None:
    router = fitted()
    batch, _, _ = rows(9, seed=3)
    other = RouterInput(batch.states, batch.mask, [("Explain at length why, and then how.", "an input")] * 9)
    assert torch.equal(router.route(other).probabilities, router.route(batch).probabilities)
    assert set(TierRouter.route.__annotations__) == {"batch", "return"}


def test_without_scores_the_gauge_is_left_alone() -> None:
    with_scores, without = fitted(), fitted(scores=False)
    heads = (with_scores.module.score_head, without.module.score_head)
    assert heads[0] is not None and heads[1] is not None and not torch.equal(heads[0].weight, heads[1].weight)
    batch, targets, _ = rows(9)
    without.losses(batch, targets)[1].backward()  # type: ignore[no-untyped-call]
    assert heads[1].weight.grad is None


@pytest.mark.parametrize("option", [{"hidden": 0}, {"held_out": 1.0}, {"balance_weight": -1.0}, {"pooling": "max"}])
def test_options_out_of_range_are_refused(option: dict[str, object]) -> None:
    with pytest.raises(RouterError):
        TierRouter(**option)  # type: ignore[arg-type]


def test_scores_must_be_as_many_as_rows() -> None:
    batch, targets, _ = rows(9)
    with pytest.raises(RouterError, match="9 rows, but 2 scores"):
        TierRouter(layers=(1,)).fit(
            RouterData([batch], targets, generator=torch.Generator(), complexities=torch.zeros(2))
        )


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return load_lm(write_lm(tmp_path / "gpt2", "gpt2"))


def records(name: str) -> list[Record]:
    return [
        Record(
            f"say {i} " * (1 if name == "simple" else 3), None, 0, name, {"texts": [f"{i}!"], "complexity": [0.1]}, ""
        )
        for i in range(8)
    ]


def learn(base: Base, *, order: JointOrder, rate: float = 1e-3, router_rate: float = 1e-2) -> tuple[list[Tensor], ...]:
    """Go through a joint phase; returns the router's and the experts' weights before and after."""
    config = ExpertConfig(
        rank=2, targets=("c_attn",), trunk_depth=1, epochs=2, batch_rows=4, learning_rate=rate, patience=0
    )
    plans = [ExpertPlan(task, config) for task in TASKS]
    experts = [fresh_expert(base, plan, seed=0) for plan in plans]
    router = TierRouter(layers=(0, 1), hidden=8)
    states = {layer: torch.randn(8, 3, base.width) for layer in (0, 1)}
    batch = RouterInput(states, torch.ones(8, 3), [("", None)] * 8)
    router.fit(RouterData([batch], torch.arange(8) % 2, generator=torch.Generator().manual_seed(0)))
    train = {task.name: records(task.name) for task in TASKS}
    before = [value.clone() for value in router.module.parameters()]
    old = [change.b.clone() for expert in experts for change in expert.factors.values()]
    found = fit_joint(
        base,
        experts,
        router,
        plans,
        train,
        train,
        joint=JointConfig(order=order).model_copy(update={"router_learning_rate": router_rate}),  # 0 is no setting
        options=LoopOptions(),
        scores={0: [0.1] * 8, 1: [0.9] * 8},
    )
    new = [change.b for expert in found for change in expert.factors.values()]
    return before, list(router.module.parameters()), old, new


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("order", ["together", "alternating"])
def test_the_joint_phase_trains_router_and_experts_and_nothing_else(base: Base, order: JointOrder) -> None:
    frozen = {name: value.clone() for name, value in base.model.state_dict().items() if "bank" not in name}
    before, after, old, new = learn(base, order=order)
    assert not same(before, after) and not same(old, new)
    for name, value in base.model.state_dict().items():
        if name in frozen and "base" not in name and frozen[name].shape == value.shape:
            assert torch.equal(frozen[name], value), name


def test_each_side_stands_still_at_rate_zero_while_the_other_learns(base: Base) -> None:
    before, after, old, new = learn(base, order="alternating", router_rate=0.0)
    assert same(before, after) and not same(old, new)


def test_a_router_whose_gradient_overflows_leaves_the_step_out(base: Base) -> None:
    router = TierRouter(layers=(0, 1), hidden=8)
    states = {layer: torch.randn(8, 3, base.width) for layer in (0, 1)}
    batch = RouterInput(states, torch.ones(8, 3), [("", None)] * 8)
    router.fit(RouterData([batch], torch.arange(8) % 2, generator=torch.Generator().manual_seed(0)))
    learner = JointRouter(base, router, JointConfig(), depth=1)
    before = [value.detach().clone() for value in learner.parameters]
    for parameter in learner.parameters:
        parameter.grad = torch.full_like(parameter, torch.inf)
    _, norm = learner.step(scale=2.0)
    assert norm == torch.inf and same(before, learner.parameters)
    for parameter in learner.parameters:
        parameter.grad = torch.ones_like(parameter)
    _, norm = learner.step(scale=2.0)
    assert norm == pytest.approx(0.5 * sum(value.numel() for value in before) ** 0.5)
    assert not same(before, learner.parameters) and all(bool(p.isfinite().all()) for p in learner.parameters)


def test_the_loop_hears_of_a_router_whose_gradient_overflows(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fp16 the norm lowers the loss scale, as an expert's does; otherwise the loop stops and names the router."""
    step = JointRouter.step

    def overflowing(self: JointRouter, *, scale: float) -> tuple[float, float]:
        self.parameters[0].grad = torch.full_like(self.parameters[0], torch.inf)
        return step(self, scale=scale)

    monkeypatch.setattr(JointRouter, "step", overflowing)
    with pytest.raises(TrainingError, match=r"'router'.*gradient norm inf"):
        learn(base, order="together")


def test_the_joint_phase_reads_the_prompt_without_the_answer(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    losses = TierRouter.losses

    def spy(self: TierRouter, batch: RouterInput, targets: Tensor, scores: Tensor | None = None) -> object:
        seen.extend(batch.mask.sum(dim=1).tolist())
        wanted = torch.where(targets == 0, 0.1, 0.9)
        assert scores is not None and torch.equal(scores, wanted)
        return losses(self, batch, targets, scores)

    monkeypatch.setattr(TierRouter, "losses", spy)
    learn(base, order="together")
    prompts = [f"{row.text}\n\n" for task in TASKS for row in records(task.name)]
    lengths = {len(base.encoder.encode([text])[0].ids) for text in prompts} | {len(text) for text in prompts}
    assert seen and set(seen) <= lengths
