"""Routers trained by gradient on pooled hidden states: what they share is the loop, the module and its file.

Training stops early on rows held out of every expert in the same proportion, and these rows also fit the temperature
(Guo et al., 2017). The same generator seed on the same machine gives the same weights to the last bit; the global
source of chance is neither read nor moved.

Letters: N rows, B batch, D width, F features, E experts.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from dynamorouter.errors import RouterError
from dynamorouter.routing.base import GradientRouter, RouterData, RouterInput
from dynamorouter.routing.calibration import better_temperature
from dynamorouter.routing.config import NetworkOptions
from dynamorouter.routing.growth import UNITS, Growth, balanced, train_growth
from dynamorouter.routing.learned import ScoringRouter
from dynamorouter.routing.nets import RouterModule, base_features
from dynamorouter.routing.options import checked_options
from dynamorouter.routing.pooling import check_layers, layer_states, statistics, width_factor
from dynamorouter.utils.optim import Optimizer, decay_groups, warmup_linear
from dynamorouter.utils.options import Number, Size

PREFIX = "module."
"""Of the names of the module's tensors in a saved router."""


class NeuralOptions(NetworkOptions):
    """What a router with a network takes: the settings of its network, and what those leave to the router."""

    layers: tuple[Size, ...] = (0, 1, 2, 3)
    """The layers that are pooled and joined."""
    held_out: Annotated[Number, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the rows held out for early stopping and the temperature."""


class NeuralRouter(GradientRouter, ScoringRouter):
    """A small network over pooled states of the trunk.

    Args:
        **options: those of ``option_model``, by name.

    Raises:
        RouterError: an option is unknown, of the wrong type or out of range.
    """

    option_model: ClassVar[type[NeuralOptions]] = NeuralOptions
    gauged: ClassVar[bool] = False  # whether the network has its second output

    def __init__(self, **options: Any) -> None:
        self.network = checked_options(self.option_model, options, kind=type(self).__name__)
        super().__init__(top_k=self.network.top_k, abstain_below=self.network.abstain_below)
        self.layers = check_layers(self.network.layers)
        self.pooling = self.network.pooling
        self._module: RouterModule | None = None

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments, as JSON holds them."""
        policy = {"top_k": self.top_k, "abstain_below": self.abstain_below}
        return self.network.model_dump(mode="json") | policy

    def new_module(self, width: int, experts: int) -> RouterModule:
        """Return a fresh network for hidden states of ``width``."""
        return RouterModule(
            layers=self.layers,
            pooling=self.pooling,
            width=width,
            hidden=self.network.hidden,
            experts=experts,
            dropout=self.network.dropout,
            score_head=self.gauged,
        )

    @abstractmethod
    def score_and_loss(
        self, module: RouterModule, features: Tensor, targets: Tensor, scores: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the logits ``(B, E)`` and the mean loss of pooled rows ``(B, F)`` (see ``GradientRouter.losses``)."""

    @property
    def module(self) -> RouterModule:
        """The trainable part, for a joint phase.

        Raises:
            RouterError: the router is not fitted.
        """
        if self._module is None:
            raise self.not_fitted()
        return self._module

    def logits(self, batch: RouterInput) -> Tensor:
        """Return the logits before the temperature, ``(B, E)``, differentiable, in the module's present mode."""
        return self.module.classify(self.module.pool(batch))

    def losses(self, batch: RouterInput, targets: Tensor, scores: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the logits ``(B, E)`` and the mean loss of a batch (see ``GradientRouter``)."""
        return self.score_and_loss(self.module, self.module.pool(batch), targets, scores)

    def scores(self, batch: RouterInput) -> Tensor:
        """Return the logits without dropout and gradients; the module keeps its mode."""
        with evaluated(self.module) as module:
            return module.classify(module.pool(batch))

    def fit(self, data: RouterData) -> None:
        """Train from scratch, stop early on held-out rows, and fit the temperature on them."""
        count = data.count_experts()
        seed = int(torch.randint(2**62, (1,), generator=data.generator, device=data.generator.device))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            states = layer_states(data.inputs[0], self.layers[0])
            module = self.new_module(states.shape[2], count).to(states.device)
            targets = data.targets.to(states.device)
            rows = Rows(
                module, data.inputs, targets, data.complexities, held_out=self.network.held_out, balance=data.balanced
            )
            module.standardise(*statistics(rows.features[rows.train]))
            module.set_prior(torch.bincount(rows.targets[rows.train], minlength=count) / len(rows.train))
            self._train(module, rows)
        self._module, self.temperature = module, 1.0
        with evaluated(module):
            logits = module.classify(rows.pooled(rows.validation))
        self.temperature = better_temperature(logits, rows.targets[rows.validation], 1.0)

    def grown(self, data: RouterData, *, keep: Sequence[int]) -> Self | None:
        """Return a router with further experts (see ``Router.grown`` and ``routing.growth``)."""
        module = self.module
        if module.attention is not None or module.score_head is not None:
            return None
        count, device = data.count_experts(), module.mean.device
        seed = int(torch.randint(2**62, (1,), generator=data.generator, device=data.generator.device))
        features = torch.cat([module.pool(batch) for batch in data.inputs]).to(device)
        network = self.network
        router = type(self)(**{**self.options(), "hidden": network.hidden and network.hidden + UNITS})
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            growth = Growth(module, keep, count - len(keep), dropout=network.dropout).to(device)
            train_growth(
                growth,
                features,
                data.targets.to(device),
                temperature=self.temperature,
                learning_rate=network.learning_rate,
                weight_decay=network.weight_decay,
                batch_rows=network.batch_rows,
            )
            width = len(module.mean) // (len(self.layers) * width_factor(self.pooling))
            router._module = router.new_module(width, count).to(device).eval()
        growth.write_into(router._module)
        router.temperature = self.temperature
        return router

    def calibrate(self, inputs: Sequence[RouterInput], targets: Tensor) -> None:
        """Fit the temperature on held-out batches, unless that would raise the calibration error."""
        experts = self.module.out.out_features
        RouterData(inputs, targets, generator=torch.Generator(), experts=experts).count_experts()
        super().calibrate(inputs, targets)

    def to(self, device: torch.device | str) -> Self:
        """Move the weights to ``device`` and return the router."""
        self.module.to(device)
        return self

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the options and the weights; widths and the number of experts follow from the weights."""
        tensors = {f"{PREFIX}{name}": value.detach() for name, value in self.module.state_dict().items()}
        return self.options(), tensors | {"temperature": torch.tensor(self.temperature, dtype=torch.float64)}

    @classmethod
    def restore(cls, options: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild a router from what ``state`` returned.

        Raises:
            ValueError: the weights do not fit the options.
        """
        router = cls(**options)
        weights = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
        width, rest = divmod(weights["mean"].shape[0], len(router.layers) * width_factor(router.pooling))
        if rest:
            raise ValueError(f"{weights['mean'].shape[0]} features cannot come from {len(router.layers)} layers")
        module = router.new_module(width, weights["out.bias"].shape[0])
        module.load_state_dict(weights)
        module.eval()
        router._module = module
        router.temperature = float(tensors["temperature"])
        return router

    def _train(self, module: RouterModule, rows: Rows) -> None:
        network = self.network
        optimizer = Optimizer(decay_groups(module.parameters(), network.learning_rate, network.weight_decay))
        best_loss, stale_epochs = float("inf"), 0
        best_weights = {name: value.clone() for name, value in module.state_dict().items()}
        for epoch in range(network.epochs):
            module.train()
            for features, positions in rows.batches(network.batch_rows):
                _, loss = self.score_and_loss(module, features, rows.targets[positions], rows.scores_of(positions))
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step(warmup_linear(epoch, network.epochs))
            with evaluated(module):
                validation = (
                    rows.pooled(rows.validation),
                    rows.targets[rows.validation],
                    rows.scores_of(rows.validation),
                )
                validation_loss = float(self.score_and_loss(module, *validation)[1])
            stale_epochs += 1
            if validation_loss < best_loss:
                best_loss, stale_epochs = validation_loss, 0
                best_weights = {name: value.clone() for name, value in module.state_dict().items()}
            if stale_epochs >= network.patience:
                break
        module.load_state_dict(best_weights)
        module.eval()


@contextmanager
def evaluated(module: RouterModule) -> Iterator[RouterModule]:
    """Switch dropout and gradients off, and give the module its mode back afterwards."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield module
    finally:
        module.train(training)


class Rows:
    """Rows as training draws them, split into a training and a held-out part.

    Poolings without parameters are computed once; attention pools each batch of token states anew.

    Args:
        module: what pools.
        inputs: batches.
        targets: index of each row's expert, ``(N,)``.
        scores: a further target of each row, ``(N,)``, or ``None``.
        held_out: share of each expert's rows that are held out.
        balance: repeat rows of experts that have fewer than others.

    Raises:
        RouterError: there are not as many scores as rows, or nothing can be held out.
    """

    def __init__(
        self,
        module: RouterModule,
        inputs: Sequence[RouterInput],
        targets: Tensor,
        scores: Tensor | None,
        *,
        held_out: float,
        balance: bool = False,
    ) -> None:
        self.module = module
        self.inputs = inputs
        self.targets = targets
        with torch.no_grad():
            self.features = torch.cat([base_features(module, batch) for batch in inputs])
        if scores is not None and len(scores) != len(targets):
            raise RouterError(f"there are {len(targets)} rows, but {len(scores)} scores; give one for each, or none")
        self._scores = None if scores is None else scores.to(self.features)
        self.train, self.validation = split_rows(targets.cpu(), held_out)
        if balance:
            self.train, self.validation = (balanced(part, targets.cpu()) for part in (self.train, self.validation))

    def scores_of(self, positions: Tensor) -> Tensor | None:
        """Return the scores of some rows, NaN where one is not known; ``None`` where there is none at all."""
        return None if self._scores is None else self._scores[positions]

    def batches(self, batch_rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the training rows once in a random order, as pooled features ``(B, F)`` and positions ``(B,)``."""
        if self.module.attention is None:
            for positions in self.train[torch.randperm(len(self.train))].split(batch_rows):  # type: ignore[no-untyped-call]
                yield self.features[positions], positions
            return
        parts = list(self._parts(self.train))
        for number in torch.randperm(len(parts)).tolist():
            batch, local, positions = parts[number]
            yield self.module.pool(batch.rows(local)), positions

    def pooled(self, positions: Tensor) -> Tensor:
        """Return the features of the rows at sorted positions, ``(n, F)``."""
        if self.module.attention is None:
            return self.features[positions]
        return torch.cat([self.module.pool(batch.rows(local)) for batch, local, _ in self._parts(positions)])

    def _parts(self, positions: Tensor) -> Iterator[tuple[RouterInput, Tensor, Tensor]]:
        """Yield each batch that holds some of ``positions``, where they are in it, and where overall."""
        start = 0
        for batch in self.inputs:
            inside = positions[(positions >= start) & (positions < start + len(batch))]
            if len(inside):
                yield batch, inside - start, inside
            start += len(batch)


def split_rows(targets: Tensor, held_out: float) -> tuple[Tensor, Tensor]:
    """Split positions ``0..N-1`` into a training and a held-out part, both sorted, in the same proportion per expert.

    An expert with a single row keeps it in training.

    Raises:
        RouterError: no expert has two rows, so that nothing can be held out.
    """
    train_rows, held_out_rows = [], []
    for expert in sorted(set(targets.tolist())):
        rows = targets.eq(expert).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows))]
        count = min(max(1, round(len(rows) * held_out)), len(rows) - 1)
        held_out_rows.append(rows[:count])
        train_rows.append(rows[count:])
    if not sum(len(rows) for rows in held_out_rows):
        raise RouterError(
            f"the router got {len(targets)} rows, one per expert; give at least two of some expert, "
            "so that one can be held out for early stopping"
        )
    return torch.cat(train_rows).sort().values, torch.cat(held_out_rows).sort().values
