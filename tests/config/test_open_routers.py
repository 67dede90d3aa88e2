"""Routers and poolings of one's own in the settings: by name, without a file, with their options checked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from dynamorouter.bench.arms.routers import Routed
from dynamorouter.config.compose import compose
from dynamorouter.errors import ConfigError
from dynamorouter.routing.base import RouterData, RouterInput
from dynamorouter.routing.baselines import Uniform
from dynamorouter.routing.mlp import TaskMLP
from dynamorouter.routing.pooling import masked_mean, pooling
from dynamorouter.routing.registry import poolings, routers
from dynamorouter.training.router import pooled_by


class Leaning(Uniform):
    """Takes all experts, and an option."""

    is_arm = True

    def __init__(self, *, lean: float = 0.0) -> None:
        self.lean = lean


@pytest.fixture
def leaning() -> Iterator[None]:
    """Register a router for one test."""
    routers.register("leaning")(Leaning)
    yield
    del routers._entries["leaning"], routers._homes["leaning"]


@pytest.fixture
def thrice() -> Iterator[None]:
    """Register a pooling of three means for one test."""

    @pooling("thrice", width_factor=3)
    def thrice(states: Tensor, mask: Tensor) -> Tensor:
        return masked_mean(states, mask).repeat(1, 3)

    yield
    del poolings._entries["thrice"], poolings._homes["thrice"]


@pytest.mark.usefixtures("leaning")
def test_a_registered_router_is_chosen_by_its_name_without_a_file() -> None:
    for words in (["router=leaning"], ["router.kind=leaning"]):
        config = compose("quickstart", [*words, "router.options={lean: 0.5}", "router.top_k=2"])
        assert (config.router.kind, config.router.options, config.router.top_k) == ("leaning", {"lean": 0.5}, 2)
    assert {"own", "mlp", "attention", "leaning"} <= set(Routed.variants(["a"]))
    assert {"oracle", "uniform", "complexity"}.isdisjoint(Routed.variants(["a"]))


@pytest.mark.usefixtures("leaning")
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["router=leaning", "router.options={leen: 1}"], "unknown option 'leen' (did you mean 'lean'?); allowed: lean"),
        (
            ["router=leaning", "router.options={lean: much}"],
            "router.options.lean: router 'leaning': got 'much'; should be a valid number",
        ),
        (["router=leaning", "router.options={lean: true}"], "router 'leaning': got True; should be a number"),
        (["router=knn", "router.options={k: 0}"], "router.options.k: router 'knn': got 0; should be greater"),
        (
            ["router=mlp", "router.options={held_out: 2}"],
            "held_out: router 'mlp': got 2; should be less than 1",
        ),
        (["router=mlp", "router.options={hiden: 1}"], "unknown option 'hiden' (did you mean 'hidden'?)"),
        (["router=leening"], "router: unknown choice 'leening' (did you mean 'leaning'?)"),
        (["router=leaning", "joint.enabled=true"], "choose one of router=complexity, mlp, or joint.enabled=false"),
        (["router.pooling=meen"], "router.pooling: got 'meen', which is no pooling (did you mean 'mean'?)"),
    ],
)
def test_what_a_router_does_not_take_is_refused_when_composing(words: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose("quickstart", words)
    assert reason in str(caught.value)


@pytest.mark.usefixtures("thrice")
def test_a_pooling_of_ones_own_is_as_wide_as_it_says() -> None:
    assert compose("quickstart", ["router.pooling=thrice"]).router.pooling == "thrice"
    router = TaskMLP(layers=(0, 1), pooling="thrice", epochs=1)
    batch = RouterInput({layer: torch.randn(8, 3, 4) for layer in (0, 1)}, torch.ones(8, 3), [("", None)] * 8)
    router.fit(RouterData([batch], torch.arange(8) % 2, generator=torch.Generator()))
    assert router.module.mean.shape == (2 * 3 * 4,)
    again = TaskMLP.restore(*router.state())
    assert torch.equal(again.route(batch).probabilities, router.route(batch).probabilities)
    assert pooled_by(router) is None  # nothing undoes it, so its rows are kept whole
    assert pooled_by(TaskMLP(pooling="mean_cls")) == "mean_cls"
