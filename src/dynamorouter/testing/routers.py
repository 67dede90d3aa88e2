"""The laws of routers.

Letters: N rows, S positions, D width, E experts, P prototypes of an expert.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import safetensors.torch
import torch
from torch import Tensor
from torch.nn.functional import pad

from dynamorouter.errors import RouterError
from dynamorouter.routing.base import Route, Router, RouterData, RouterInput
from dynamorouter.routing.registry import routers
from dynamorouter.testing.contract import Contract, require

LAYERS, WIDTH, EXPERTS, POSITIONS = (0, 1, 2, 3), 12, 3, 6
WORDS = (
    ("the film is dull", "a warm and funny story", "bad acting", "it moved me to tears"),
    ("shares fell on monday", "the bank reported profit", "oil prices rise again", "a merger was announced"),
    ("who wrote the book", "when did the war end", "where is the river", "how tall is the tower"),
)


def separable_rows(count: int, seed: int) -> tuple[RouterInput, Tensor]:
    """Return rows of random lengths whose expert shifts every token, in words too, and their experts ``(N,)``."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % EXPERTS
    lengths = torch.randint(2, POSITIONS + 1, (count,), generator=generator)
    centres = torch.randn(EXPERTS, WIDTH, generator=torch.Generator().manual_seed(99)) * 2
    mask = (torch.arange(POSITIONS) < lengths.unsqueeze(1)).long()
    states = {
        layer: torch.randn(count, POSITIONS, WIDTH, generator=generator) + centres[targets].unsqueeze(1)
        for layer in LAYERS
    }
    texts = [
        (WORDS[int(target)][(row * 7 + seed) % 4] + f" {row}", "and so on" if row % 2 else None)
        for row, target in enumerate(targets)
    ]
    return RouterInput(states, mask, texts), targets


def fit_data(order: Sequence[int] = range(EXPERTS)) -> RouterData:
    """Return what a router is fitted on, the same each time, expert e renamed to ``order[e]``."""
    first, first_targets = separable_rows(24, seed=1)
    second, second_targets = separable_rows(15, seed=2)
    prototypes = torch.randn(EXPERTS, 2, WIDTH, generator=torch.Generator().manual_seed(3))
    return RouterData(
        [first, second],
        torch.tensor(list(order))[torch.cat([first_targets, second_targets])],
        generator=torch.Generator().manual_seed(4),
        experts=EXPERTS,
        prototypes=prototypes[torch.tensor(list(order)).argsort()],
    )


def same_route(one: Route, other: Route, *, tolerance: float = 0.0) -> None:
    """Check that two routes are equal, numbers up to ``tolerance``.

    Raises:
        AssertionError: they are not.
    """
    for name in ("experts", "abstained"):
        require(torch.equal(getattr(one, name), getattr(other, name)), f"{name} differ")
    for name in ("weights", "probabilities", "confidence"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0.0, atol=tolerance)


def _held_out() -> tuple[list[RouterInput], Tensor]:
    """Return a batch to calibrate on, half of whose rows name a wrong expert."""
    batch, targets = separable_rows(30, seed=5)
    return [batch], torch.where(torch.arange(30) % 2 == 0, targets, (targets + 1) % EXPERTS)


class RouterContract(Contract):
    """The laws of routers.

    Attributes:
        router: the class.
        options: of its constructor.
        learns: whether it finds the expert of rows that are far apart, having seen others like them.
        permutes: whether renaming the experts renames the routes, as where nothing begins at random.
        tolerance: of probabilities, for another order of the same sums.
    """

    router: ClassVar[type[Router]]
    options: ClassVar[Mapping[str, Any]] = {}
    learns: ClassVar[bool] = True
    permutes: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1e-5

    def fitted(self, order: Sequence[int] = range(EXPERTS)) -> Router:
        """Return a fitted router, expert e renamed to ``order[e]``."""
        router = self.router(**self.options)
        router.fit(fit_data(order))
        return router

    def test_is_what_the_registry_takes(self) -> None:
        """The class has all that a router has."""
        require(not routers.fault(self.router), routers.fault(self.router))

    def test_route_is_a_distribution_over_all_experts(self) -> None:
        """Probabilities and weights of a row sum to one, the confidence is the first expert's, nothing abstains."""
        batch, targets = separable_rows(7, seed=8)
        route = self.fitted().route_labelled(batch, targets)
        require(route.probabilities.shape == (7, EXPERTS), "probabilities are (B, E)")
        require(route.experts.dtype == torch.int64, "experts are int64")
        require(route.experts.shape == route.weights.shape, "each chosen expert has a weight")
        torch.testing.assert_close(route.probabilities.sum(1), torch.ones(7))
        torch.testing.assert_close(route.weights.sum(1), torch.ones(7))
        best = route.probabilities.gather(1, route.experts[:, :1]).squeeze(1)
        torch.testing.assert_close(route.confidence, best)
        require(not route.abstained.any(), "without abstain_below no row is abstained from")

    def test_a_row_alone_is_routed_as_in_a_batch(self) -> None:
        """What a row is routed to depends on that row alone."""
        router = self.fitted()
        batch, targets = separable_rows(9, seed=8)
        together = router.route_labelled(batch, targets)
        for row in range(9):
            rows = torch.tensor([row])
            alone = router.route_labelled(batch.rows(rows), targets[rows])
            require(torch.equal(alone.experts[0], together.experts[row]), f"row {row} alone goes to other experts")
            torch.testing.assert_close(alone.probabilities[0], together.probabilities[row], rtol=0, atol=self.tolerance)

    def test_padding_changes_nothing(self) -> None:
        """Positions that the mask leaves out are not read, on either side."""
        router = self.fitted()
        batch, targets = separable_rows(9, seed=8)
        for sides in ((5, 0), (0, 5)):
            states = {layer: pad(state, (0, 0, *sides), value=1e3) for layer, state in batch.states.items()}
            padded = RouterInput(states, pad(batch.mask, sides), batch.texts)
            same_route(
                router.route_labelled(padded, targets), router.route_labelled(batch, targets), tolerance=self.tolerance
            )

    def test_saved_and_loaded_is_the_same_to_the_bit(self) -> None:
        """Options go through JSON and tensors through safetensors, and the router is the same."""
        router = self.fitted()
        batch, targets = separable_rows(9, seed=8)
        router.calibrate(*_held_out())
        options, tensors = router.state()
        stored = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
        again = self.router.restore(json.loads(json.dumps(options)), safetensors.torch.load(stored))
        require(again.state()[0] == options, "options are those that were saved")
        same_route(again.route_labelled(batch, targets), router.route_labelled(batch, targets))

    def test_the_same_seed_gives_the_same_bits_and_leaves_global_chance_alone(self) -> None:
        """Only the generator that ``fit`` is given decides what is drawn."""
        torch.manual_seed(1)
        undisturbed = torch.rand(3)
        torch.manual_seed(1)
        one = self.fitted()
        require(torch.equal(torch.rand(3), undisturbed), "fit draws from the global generator")
        torch.manual_seed(2)
        other = self.fitted()
        for name, tensor in one.state()[1].items():
            require(torch.equal(tensor, other.state()[1][name]), f"{name} differs between two fits with one seed")

    def test_renaming_experts_renames_the_routes(self) -> None:
        """The experts' numbers mean nothing, where the router claims that (``permutes``)."""
        if not self.permutes:
            return
        order = [2, 0, 1]
        batch, targets = separable_rows(9, seed=8)
        plain = self.fitted().route_labelled(batch, targets).probabilities
        renamed = self.fitted(order).route_labelled(batch, torch.tensor(order)[targets]).probabilities
        torch.testing.assert_close(renamed[:, order], plain, rtol=0, atol=max(1e-4, self.tolerance))

    def test_rows_far_apart_find_their_expert(self) -> None:
        """Nine rows in ten are routed rightly, where the router claims to learn (``learns``)."""
        if self.learns:
            batch, targets = separable_rows(60, seed=8)
            right = self.fitted().route_labelled(batch, targets).experts[:, 0].eq(targets).float().mean()
            require(float(right) > 0.9, f"only {float(right):.0%} of separable rows find their expert")

    def test_what_is_not_fitted_says_so(self) -> None:
        """A router that is asked before it is fitted is an error that a user can act on."""
        batch, targets = separable_rows(2, seed=1)
        try:
            self.router(**self.options).route_labelled(batch, targets)
        except RouterError as error:
            require("not fitted" in str(error), f"the message does not say that it is not fitted: {error}")
        else:
            raise AssertionError("a router that is not fitted routes")
