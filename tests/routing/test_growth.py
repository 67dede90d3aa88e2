"""Experts that join a fitted router: old logits stay, new experts are found, and nobody counts more."""

from __future__ import annotations

import pytest
import torch

from dynamorouter.routing.base import RouterData, RouterInput
from dynamorouter.routing.growth import balanced
from dynamorouter.routing.mlp import TaskMLP

WIDTH = 12


def rows(experts: list[int], count: int, seed: int) -> tuple[RouterInput, torch.Tensor]:
    """Return rows of experts that lie apart, ``count`` of each, and their experts."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(9)) * 2
    targets = torch.tensor(experts).repeat_interleave(count)
    states = torch.randn(len(targets), 4, WIDTH, generator=generator) + centres[targets][:, None]
    return RouterInput({0: states, 1: states * 0.5}, torch.ones(len(targets), 4), [("", None)] * len(targets)), targets


def fitted(**options: object) -> TaskMLP:
    router = TaskMLP(layers=(0, 1), batch_rows=8, learning_rate=0.01, **options)
    batch, targets = rows([0, 1, 2], 20, seed=1)
    router.fit(RouterData([batch], targets, generator=torch.Generator().manual_seed(2)))
    return router


@pytest.mark.parametrize("hidden", [0, 16])
def test_old_logits_stay_and_new_experts_are_found(hidden: int) -> None:
    router = fitted(hidden=hidden)
    old_batch, old_targets = rows([0, 1, 2], 4, seed=3)
    new_batch, new_targets = rows([3, 4], 60, seed=4)
    data = RouterData(
        [old_batch, new_batch], torch.cat([old_targets, new_targets]), generator=torch.Generator().manual_seed(5)
    )
    grown = router.grown(data, keep=[0, 1, 2])
    assert grown is not None and grown.options() == router.options() | {"hidden": hidden and hidden + 32}
    batch, targets = rows([0, 1, 2, 3, 4], 30, seed=6)
    torch.testing.assert_close(grown.scores(batch)[:, :3], router.scores(batch))  # but for the order of sums
    assert grown.route(batch).experts[:, 0].eq(targets).float().mean() > 0.95
    again = TaskMLP.restore(*grown.state())
    assert torch.equal(again.route(batch).probabilities, grown.route(batch).probabilities)


def test_an_expert_that_left_makes_room() -> None:
    router = fitted(hidden=16)
    batch, _ = rows([0, 2, 5], 20, seed=3)
    data = RouterData(
        [batch], torch.tensor([0, 1, 2]).repeat_interleave(20), generator=torch.Generator().manual_seed(5)
    )
    grown = router.grown(data, keep=[0, 2])
    assert grown is not None
    torch.testing.assert_close(grown.scores(batch)[:, :2], router.scores(batch)[:, [0, 2]])


def test_learned_attention_is_fitted_anew() -> None:
    batch, targets = rows([0, 1], 8, seed=1)
    data = RouterData([batch], targets, generator=torch.Generator().manual_seed(2))
    router = TaskMLP(layers=(0,), pooling="attention", epochs=1)
    router.fit(data)
    assert router.grown(data, keep=[0]) is None


def test_balanced_positions_hold_every_expert_as_often() -> None:
    targets = torch.tensor([0, 1, 0, 0, 0, 2, 0, 2])
    positions = balanced(torch.tensor([0, 1, 2, 3, 5, 7]), targets)
    assert positions.tolist() == [0, 1, 1, 1, 2, 3, 5, 5, 7]


def test_a_balanced_fit_finds_an_expert_of_few_rows() -> None:
    """Rows that overlap: without balance the few would be given up for the many."""
    generator = torch.Generator().manual_seed(0)
    states = torch.cat([torch.randn(400, 1, 4, generator=generator), torch.randn(12, 1, 4, generator=generator) + 0.8])
    batch = RouterInput({0: states}, torch.ones(412, 1), [("", None)] * 412)
    targets = (torch.arange(412) >= 400).long()
    shares = []
    for balance in (False, True):
        router = TaskMLP(layers=(0,), pooling="mean", hidden=0, epochs=20, learning_rate=0.01)
        router.fit(RouterData([batch], targets, generator=torch.Generator().manual_seed(2), balanced=balance))
        shares.append(float(router.route(batch).experts[400:, 0].float().mean()))
    assert shares[0] < 0.2 and shares[1] > 0.5
