"""Laws that every registered router keeps, found by name in the registry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dynamorouter.config.checks import SURELY_TRAINABLE
from dynamorouter.errors import RouterError
from dynamorouter.routing.base import GradientRouter, Route, Router, RouterData, RouterInput
from dynamorouter.routing.baselines import Oracle
from dynamorouter.routing.registry import routers
from dynamorouter.routing.serialization import build, kind_of, load, save

LAYERS, WIDTH, EXPERTS = (0, 1, 2, 3), 12, 3
WORDS = (
    ("the film is dull", "a warm and funny story", "bad acting", "it moved me to tears"),
    ("shares fell on monday", "the bank reported profit", "oil prices rise again", "a merger was announced"),
    ("who wrote the book", "when did the war end", "where is the river", "how tall is the tower"),
)
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


def rows(count: int, seed: int) -> tuple[RouterInput, Tensor]:
    """Return separable rows of random lengths whose expert shifts every token, and their experts."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % EXPERTS
    lengths = torch.randint(2, 7, (count,), generator=generator)
    centres = torch.randn(EXPERTS, WIDTH, generator=torch.Generator().manual_seed(99)) * 2
    mask = (torch.arange(6) < lengths.unsqueeze(1)).long()
    states = {
        layer: torch.randn(count, 6, WIDTH, generator=generator) + centres[targets].unsqueeze(1) for layer in LAYERS
    }
    texts = [
        (WORDS[int(target)][(place * 7 + seed) % 4] + f" {place}", "and so on" if place % 2 else None)
        for place, target in enumerate(targets)
    ]
    return RouterInput(states, mask, texts), targets


def fitted(kind: str, options: dict[str, Any], *, order: Sequence[int] = range(EXPERTS)) -> Router:
    """Return a router fitted on the same rows each time, expert e renamed to ``order[e]``."""
    router = build(kind, OPTIONS.get(kind, {}) | options)
    first, first_targets = rows(24, seed=1)
    second, second_targets = rows(15, seed=2)
    named = torch.tensor(list(order))[torch.cat([first_targets, second_targets])]
    prototypes = torch.randn(EXPERTS, 2, WIDTH, generator=torch.Generator().manual_seed(3))
    router.fit(
        RouterData(
            [first, second],
            named,
            generator=torch.Generator().manual_seed(4),
            experts=EXPERTS,
            prototypes=prototypes[torch.tensor(list(order)).argsort()],
        )
    )
    return router


def routed(router: Router, batch: RouterInput, targets: Tensor) -> Route:
    """Route a batch, telling the oracle what it must be told."""
    return router.route_labelled(batch, targets)


@pytest.fixture(params=VARIANTS, ids=[f"{kind}-{'-'.join(map(str, o.values()))}" for kind, o in VARIANTS])
def router(request: pytest.FixtureRequest) -> Router:
    kind, options = request.param
    return fitted(kind, options)


def same(one: Route, other: Route, *, tolerance: float = 0.0) -> None:
    """Check that two routes are equal, numbers up to ``tolerance``."""
    for name in ("experts", "abstained"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for name in ("weights", "probabilities", "confidence"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0.0, atol=tolerance)


def test_route_is_a_distribution_over_all_experts(router: Router) -> None:
    batch, targets = rows(7, seed=8)
    route = routed(router, batch, targets)
    assert route.probabilities.shape == (7, EXPERTS)
    assert route.experts.dtype == torch.int64
    assert route.experts.shape == route.weights.shape
    torch.testing.assert_close(route.probabilities.sum(1), torch.ones(7))
    torch.testing.assert_close(route.weights.sum(1), torch.ones(7))
    torch.testing.assert_close(route.confidence, route.probabilities.gather(1, route.experts[:, :1]).squeeze(1))
    assert not route.abstained.any()


def test_row_alone_equals_row_in_a_batch(router: Router) -> None:
    batch, targets = rows(9, seed=8)
    together = routed(router, batch, targets)
    for row in range(9):
        place = torch.tensor([row])
        alone = routed(router, batch.rows(place), targets[place])
        assert torch.equal(alone.experts[0], together.experts[row])
        torch.testing.assert_close(alone.probabilities[0], together.probabilities[row], rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(router: Router, side: str) -> None:
    batch, targets = rows(9, seed=8)
    shape = (5, 0) if side == "left" else (0, 5)
    padded = RouterInput(
        {k: torch.nn.functional.pad(v, (0, 0, *shape), value=1e3) for k, v in batch.states.items()},
        torch.nn.functional.pad(batch.mask, shape),
        batch.texts,
    )
    same(routed(router, padded, targets), routed(router, batch, targets), tolerance=1e-5)


def test_saved_and_loaded_is_the_same_to_the_bit(router: Router, tmp_path: object) -> None:
    batch, targets = rows(9, seed=8)
    folder = f"{tmp_path}/deep/er"
    save(router, folder)
    again = load(folder)
    assert kind_of(again) == kind_of(router)
    assert again.state()[0] == router.state()[0]
    assert {name: value.tolist() for name, value in again.state()[1].items()} == {
        name: value.tolist() for name, value in router.state()[1].items()
    }
    same(routed(again, batch, targets), routed(router, batch, targets))


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_same_seed_gives_the_same_bits_and_leaves_global_chance_alone(kind: str, options: dict[str, object]) -> None:
    batch, targets = rows(9, seed=8)
    torch.manual_seed(1)
    one = fitted(kind, options)
    before = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), before)
    torch.manual_seed(2)
    other = fitted(kind, options)
    for name, value in one.state()[1].items():
        assert torch.equal(value, other.state()[1][name]), name
    same(routed(one, batch, targets), routed(other, batch, targets))


@pytest.mark.parametrize("kind", ["arrow", "centroids", "knn", "tfidf", "static"])
def test_renaming_experts_permutes_the_routes(kind: str) -> None:
    batch, _ = rows(9, seed=8)
    order = [2, 0, 1]
    plain = fitted(kind, {"expert": 0} if kind == "static" else {})
    renamed = fitted(kind, {"expert": order[0]} if kind == "static" else {}, order=order)
    if kind == "centroids":  # with all examples, since which few are drawn follows the order of the experts
        plain, renamed = fitted(kind, {"examples": 100}), fitted(kind, {"examples": 100}, order=order)
    torch.testing.assert_close(
        renamed.route(batch).probabilities[:, order], plain.route(batch).probabilities, rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("kind", ["mlp", "complexity", "centroids", "knn", "tfidf"])
def test_separable_rows_find_their_expert(kind: str) -> None:
    batch, targets = rows(60, seed=8)
    assert fitted(kind, {}).route(batch).experts[:, 0].eq(targets).float().mean() > 0.9


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


@pytest.mark.parametrize("kind", sorted(set(routers) - {"oracle"}))
def test_unfitted_router_says_so(kind: str) -> None:
    with pytest.raises(RouterError, match="not fitted"):
        build(kind, {}).route(rows(2, seed=1)[0])


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
    assert torch.equal(routed(fitted("oracle", {}), batch, targets).experts[:, 0], targets)
    assert fitted("static", {"expert": 2}).route(batch).experts.unique().tolist() == [2]
    assert fitted("uniform", {}).route(batch).weights.unique().tolist() == pytest.approx([1 / 3])
    drawn = fitted("random", {}).route(batch).experts
    assert drawn.unique().tolist() == [0, 1, 2]
    assert not torch.equal(drawn, fitted("random", {"seed": 6}).route(batch).experts)


def test_only_the_oracle_is_told_labels_and_each_time(router: Router) -> None:
    batch, targets = rows(4, seed=8)
    if not isinstance(router, Oracle):
        same(router.route(batch), router.route_labelled(batch, (targets + 1) % EXPERTS))


def test_oracle_needs_to_be_told_each_time() -> None:
    batch, targets = rows(4, seed=8)
    oracle = fitted("oracle", {})
    routed(oracle, batch, targets)
    with pytest.raises(RouterError, match="4 rows without their experts"):
        oracle.route(batch)
    with pytest.raises(RouterError, match="4 rows and the experts of 3"):
        oracle.route_labelled(batch, targets[:3])
    with pytest.raises(RouterError, match="experts 3 to 3 of 3"):
        oracle.route_labelled(batch, torch.full((4,), 3))
