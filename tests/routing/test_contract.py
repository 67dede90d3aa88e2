"""Laws that every registered router keeps, found by name in the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynamorouter.config.checks import SURELY_TRAINABLE
from dynamorouter.errors import RouterError
from dynamorouter.routing.base import GradientRouter, Router, RouterInput
from dynamorouter.routing.baselines import Oracle
from dynamorouter.routing.registry import routers
from dynamorouter.routing.serialization import kind_of, load, save
from dynamorouter.testing import RouterContract
from dynamorouter.testing.routers import EXPERTS, same_route, separable_rows

OPTIONS: dict[str, dict[str, Any]] = {
    "mlp": {"epochs": 10, "hidden": 16, "batch_rows": 8, "learning_rate": 0.01},
    "arrow": {"layer": 2},
    "random": {"seed": 5},
    "centroids": {"examples": 6},
    "complexity": {"hidden": 16, "batch_rows": 8, "learning_rate": 0.01},
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [(kind, {}) for kind in routers] + [
    ("mlp", {"pooling": "attention", "learning_rate": 0.02}),
    ("mlp", {"pooling": "cls"}),
    ("mlp", {"pooling": "last"}),
    ("mlp", {"pooling": "mean_cls"}),
    ("mlp", {"pooling": "mean_last"}),
    ("mlp", {"pooling": "mean_sum"}),
    ("centroids", {"pooling": "mean_last"}),
    ("knn", {"pooling": "mean_cls"}),
    ("mlp", {"hidden": 0}),
    ("complexity", {"pooling": "mean"}),
]
LEARNED = ("mlp", "complexity", "centroids", "knn", "tfidf", "arrow")
RANDOM = ("mlp", "complexity", "random")
"""Begin with random numbers, so that renaming the experts gives other routes."""
NOT_LEARNING = ("random", "static", "uniform", "arrow")
"""Are not taught by the rows."""


def contract(kind: str, options: dict[str, object]) -> RouterContract:
    """Return the laws of one kind of router."""
    return RouterContract.of(
        router=routers.get(kind),
        options=OPTIONS.get(kind, {}) | options,
        learns=kind not in NOT_LEARNING and not (kind == "mlp" and options),
        permutes=kind not in RANDOM and kind != "centroids",  # which few examples are drawn follows the order
    )()


def fitted(kind: str, options: dict[str, object]) -> Router:
    """Return a router fitted on the contract's rows."""
    return contract(kind, options).fitted()


def rows(count: int, seed: int) -> tuple[RouterInput, Tensor]:
    """Return the contract's rows."""
    return separable_rows(count, seed)


@pytest.mark.parametrize("law", RouterContract.laws())
@pytest.mark.parametrize(
    ("kind", "options"), VARIANTS, ids=[f"{kind}-{'-'.join(map(str, o.values()))}" for kind, o in VARIANTS]
)
def test_a_router_keeps_the_contract(kind: str, options: dict[str, object], law: str) -> None:
    getattr(contract(kind, options), law)()


def test_renaming_experts_renames_the_centroids_of_all_examples() -> None:
    every = RouterContract.of(router=routers.get("centroids"), options={"examples": 100})
    every().test_renaming_experts_renames_the_routes()


def test_a_saved_router_says_its_kind(tmp_path: Path) -> None:
    for kind in routers:
        router = fitted(kind, {})
        save(router, tmp_path / kind / "deep")
        assert kind_of(load(tmp_path / kind / "deep")) == kind_of(router) == kind


@pytest.mark.parametrize("kind", LEARNED)
def test_top_k_and_abstention(kind: str) -> None:
    batch, _ = rows(9, seed=8)
    plain = fitted(kind, {})
    route = plain.route(batch)
    two = fitted(kind, {"top_k": 2}).route(batch)
    assert two.experts.shape == (9, 2)
    assert torch.equal(two.experts[:, 0], route.experts[:, 0])
    best = route.probabilities.topk(2, dim=1).values
    torch.testing.assert_close(two.weights, best / best.sum(1, keepdim=True))
    threshold = float(route.confidence.median())
    assert torch.equal(fitted(kind, {"abstain_below": threshold}).route(batch).abstained, route.confidence < threshold)
    assert fitted(kind, {"top_k": 9}).route(batch).experts.shape == (9, EXPERTS)


@pytest.mark.parametrize("kind", ["mlp", "complexity", "centroids", "knn"])
def test_missing_layer_is_named(kind: str) -> None:
    batch, _ = rows(9, seed=8)
    shallow = RouterInput({0: batch.states[0]}, batch.mask, batch.texts)
    with pytest.raises(RouterError, match=r"layer 1.*\[0\]"):
        fitted(kind, {}).route(shallow)


def test_the_trainable_routers_are_those_with_a_gradient() -> None:
    trainable = [kind for kind, router in routers.items() if router.trainable]
    assert trainable == [kind for kind, router in routers.items() if issubclass(router, GradientRouter)]
    assert set(SURELY_TRAINABLE) <= set(trainable)


def test_baselines_do_what_their_names_say() -> None:
    batch, targets = rows(30, seed=8)
    assert torch.equal(fitted("oracle", {}).route_labelled(batch, targets).experts[:, 0], targets)
    assert fitted("static", {"expert": 2}).route(batch).experts.unique().tolist() == [2]
    assert fitted("uniform", {}).route(batch).weights.unique().tolist() == pytest.approx([1 / 3])
    drawn = fitted("random", {}).route(batch).experts
    assert drawn.unique().tolist() == [0, 1, 2]
    assert not torch.equal(drawn, fitted("random", {"seed": 6}).route(batch).experts)


@pytest.mark.parametrize("kind", list(routers))
def test_only_the_oracle_is_told_labels_and_each_time(kind: str) -> None:
    router = fitted(kind, {})
    batch, targets = rows(4, seed=8)
    if not isinstance(router, Oracle):
        same_route(router.route(batch), router.route_labelled(batch, (targets + 1) % EXPERTS))


def test_oracle_needs_to_be_told_each_time() -> None:
    batch, targets = rows(4, seed=8)
    oracle = fitted("oracle", {})
    oracle.route_labelled(batch, targets)
    with pytest.raises(RouterError, match="4 rows without their experts"):
        oracle.route(batch)
    with pytest.raises(RouterError, match="4 rows and the experts of 3"):
        oracle.route_labelled(batch, targets[:3])
    with pytest.raises(RouterError, match="experts 3 to 3 of 3"):
        oracle.route_labelled(batch, torch.full((4,), 3))
