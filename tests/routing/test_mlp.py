"""The task MLP: training, calibration, gradients for a joint phase."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dynamorouter.errors import RouterError
from dynamorouter.routing.base import RouterData, RouterInput
from dynamorouter.routing.calibration import ece
from dynamorouter.routing.mlp import TaskMLP
from dynamorouter.routing.neural import split_rows
from dynamorouter.training.router import from_features, make_skill

LAYERS, WIDTH, EXPERTS = (1, 2), 8, 4


def batches(count: int, seed: int, *, noise: float = 1.0, size: int = 16) -> tuple[list[RouterInput], Tensor]:
    """Return batches of rows of which a single token tells the expert, and the experts."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, EXPERTS, (count,), generator=generator)
    centres = torch.eye(WIDTH)[:EXPERTS] * 4
    found = []
    for part in targets.split(size):
        states = torch.randn(len(part), 6, WIDTH, generator=generator) * noise
        where = torch.randint(0, 4, (len(part),), generator=generator)
        states[torch.arange(len(part)), where] += centres[part]
        mask = (torch.arange(6) < 5).long().expand(len(part), 6)
        found.append(RouterInput({1: states, 2: states.tanh()}, mask, [("", None)] * len(part)))
    return found, targets


def fit(inputs: list[RouterInput], targets: Tensor, *, seed: int = 0, **options: object) -> TaskMLP:
    router = TaskMLP(**{"layers": LAYERS, "hidden": 16, "epochs": 15, "batch_rows": 16, **options})  # type: ignore[arg-type]
    router.fit(RouterData(inputs, targets, generator=torch.Generator().manual_seed(seed), experts=EXPERTS))
    return router


def accuracy(router: TaskMLP, inputs: list[RouterInput], targets: Tensor) -> float:
    return float(torch.cat([router.route(batch).experts[:, 0] for batch in inputs]).eq(targets).float().mean())


def test_attention_finds_the_token_that_tells() -> None:
    train, heldout = batches(400, 1), batches(200, 2)
    mean = accuracy(fit(*train, learning_rate=0.01), *heldout)
    attention = accuracy(fit(*train, pooling="attention", learning_rate=0.01), *heldout)
    assert mean > 0.6
    assert attention > mean


def test_batching_does_not_matter_to_pooled_training() -> None:
    inputs, targets = batches(96, 1, size=16)
    whole = RouterInput(
        {k: torch.cat([batch.states[k] for batch in inputs]) for k in LAYERS},
        torch.cat([batch.mask for batch in inputs]),
        [("", None)] * 96,
    )
    one, other = fit(inputs, targets).state()[1], fit([whole], targets).state()[1]
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-4)


def test_another_seed_gives_other_weights() -> None:
    train = batches(64, 1)
    assert not torch.equal(fit(*train).module.out.weight, fit(*train, seed=1).module.out.weight)


@pytest.mark.parametrize("pooling", ["mean", "mean_cls", "mean_last", "attention"])
def test_gradients_reach_every_weight_and_the_states(pooling: str) -> None:
    inputs, targets = batches(32, 1)
    router = fit(inputs, targets, pooling=pooling)
    states = {layer: value.clone().requires_grad_() for layer, value in inputs[0].states.items()}
    logits = router.logits(RouterInput(states, inputs[0].mask, inputs[0].texts))
    assert logits.shape == (16, EXPERTS)
    torch.nn.functional.cross_entropy(logits, targets[:16]).backward()
    for name, parameter in router.module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert all(value.grad is not None and value.grad[:, 5].eq(0).all() for value in states.values())


@pytest.mark.parametrize("pooling", ["cls", "last", "mean", "mean_cls", "mean_last", "mean_sum", "sum"])
def test_a_kept_skill_is_routed_like_its_rows(pooling: str) -> None:
    inputs, targets = batches(32, 1)
    router = fit(inputs, targets, pooling=pooling)
    skill = make_skill(router, inputs, [3, 20, 0])
    assert skill is not None and skill.pooling == pooling
    expected = torch.cat([router.route(batch).probabilities for batch in inputs])[[3, 20, 0]]
    again = router.route(from_features(skill, torch.device("cpu"))).probabilities
    torch.testing.assert_close(again, expected, rtol=2e-2, atol=2e-3)  # kept in float16


def test_route_is_the_same_while_the_module_trains() -> None:
    inputs, targets = batches(32, 1)
    router = fit(inputs, targets)
    before = router.route(inputs[0]).probabilities
    router.module.train()
    assert torch.equal(router.route(inputs[0]).probabilities, before)
    assert router.module.training


def test_calibration_never_raises_the_error() -> None:
    router = fit(*batches(400, 1, noise=2.0), learning_rate=0.01)
    inputs, targets = batches(600, 2, noise=2.0)
    for start in (router.temperature, 0.05, 20.0):
        router.temperature = start
        before = ece(torch.cat([router.route(batch).probabilities for batch in inputs]), targets)
        router.calibrate(inputs, targets)
        after = ece(torch.cat([router.route(batch).probabilities for batch in inputs]), targets)
        assert after <= before + 1e-6
    assert after < 0.1


def test_held_out_rows_keep_the_proportions() -> None:
    targets = torch.tensor([0] * 50 + [1] * 20 + [2])
    train, held = split_rows(targets, 0.1)
    assert torch.cat([train, held]).sort().values.tolist() == list(range(71))
    assert torch.bincount(targets[held], minlength=3).tolist() == [5, 2, 0]
    with pytest.raises(RouterError, match="at least two"):
        split_rows(torch.tensor([0, 1]), 0.1)


def test_mistakes_are_named() -> None:
    inputs, targets = batches(32, 1)
    with pytest.raises(RouterError, match="did you mean 'attention'"):
        TaskMLP(pooling="atention")
    with pytest.raises(RouterError, match="abstain_below: got 2; should be less than or equal to 1"):
        TaskMLP(abstain_below=2)
    with pytest.raises(RouterError, match="32 rows and 31 targets"):
        fit(inputs, targets[:31])
    with pytest.raises(RouterError, match="there are 4 experts"):
        fit(inputs, targets + 1)
    with pytest.raises(RouterError, match="each once"):
        TaskMLP(layers=(1, 1))
