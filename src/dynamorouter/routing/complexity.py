"""The complexity router: from the base's hidden states of a prompt to a tier, and to the prompt's complexity.

Pooled states go through one hidden layer to a softmax over the tiers and to one sigmoid, which estimates the score
that the tiers were made of. The loss is the tiers' cross-entropy, a squared error of the estimate, and a term that
keeps the mean route of a batch near the tiers' prior, so that no expert starves. Only hidden states are read: a
parser is needed to make the targets, never to route.

Letters: N rows, B batch, D width, F features, E tiers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from dynamorouter.errors import RouterError
from dynamorouter.routing.base import (
    GradientRouter,
    Route,
    RouterInput,
    check_choice,
    check_targets,
    routers,
)
from dynamorouter.routing.calibration import better_temperature
from dynamorouter.routing.features import POOLINGS, check_layers, check_pooling, parts, pooled, pooled_all, statistics
from dynamorouter.routing.mlp import split_rows


def balance_loss(probabilities: Tensor, prior: Tensor) -> Tensor:
    """Return the divergence of a batch's mean route from the prior, in nats: 0 where they are equal.

    Args:
        probabilities: of each row, ``(B, E)``.
        prior: share of each tier, ``(E,)``, sums to one.
    """
    usage = probabilities.mean(dim=0).clamp_min(torch.finfo(probabilities.dtype).tiny)
    return torch.where(prior > 0, prior * (prior.clamp_min(1e-12) / usage).log(), 0.0).sum()


def squared_error(estimates: Tensor, scores: Tensor) -> Tensor:
    """Return the mean squared error over the rows ``(B,)`` whose score is known, that is not NaN; 0 where none is."""
    known = ~scores.isnan()
    gaps = torch.where(known, estimates - scores.nan_to_num(), 0.0)
    return gaps.square().sum() / known.sum().clamp_min(1)


class ComplexityModule(nn.Module):
    """The trainable part: standardised features, one hidden layer, two outputs.

    Args:
        features: F.
        hidden: width of the hidden layer.
        tiers: E.
        dropout: on the features and on the hidden layer, in training.
    """

    mean: Tensor
    inverse_std: Tensor
    prior: Tensor

    def __init__(self, *, features: int, hidden: int, tiers: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("inverse_std", torch.ones(features))
        self.register_buffer("prior", torch.full((tiers,), 1.0 / tiers))
        self.dropout = nn.Dropout(dropout)
        self.inner = nn.Linear(features, hidden)
        self.out = nn.Linear(hidden, tiers)
        self.gauge = nn.Linear(hidden, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``(B, E)`` and complexity ``(B,)`` between 0 and 1, float32, of features ``(B, F)``."""
        with torch.autocast(device_type=features.device.type, enabled=False):
            hidden = self.dropout((features - self.mean) * self.inverse_std)
            hidden = self.dropout(functional.gelu(self.inner(hidden)))
            return self.out(hidden), self.gauge(hidden).sigmoid().squeeze(1)


@routers.register("complexity")
class TierRouter(GradientRouter):
    """Chooses the expert of a tier, and estimates the complexity that the tiers were made of.

    Args:
        layers: the layers that are pooled and joined.
        pooling: ``mean``, ``cls``, ``last``, ``sum``, or two joined: ``mean_cls``, ``mean_last``, ``mean_sum``.
        hidden: width of the hidden layer.
        dropout: dropout in training, on the features and on the hidden layer.
        epochs: at most so many passes over the rows.
        learning_rate: of AdamW in the first epoch; it falls linearly with the epochs, towards zero.
        weight_decay: of AdamW.
        batch_rows: rows per step.
        patience: epochs without a better held-out loss before training stops.
        held_out: share of the rows held out for early stopping and the temperature.
        complexity_weight: of the squared error of the complexity.
        balance_weight: of the divergence of the mean route from the prior.
        top_k: experts per row.
        abstain_below: a confidence below this marks the row as abstained.

    Raises:
        RouterError: an option is out of range.
    """

    def __init__(
        self,
        *,
        layers: Sequence[int] = (0, 1, 2, 3),
        pooling: str = "mean_sum",
        hidden: int = 256,
        dropout: float = 0.3,
        epochs: int = 30,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.5,
        batch_rows: int = 32,
        patience: int = 5,
        held_out: float = 0.1,
        complexity_weight: float = 0.1,
        balance_weight: float = 0.1,
        top_k: int = 1,
        abstain_below: float = 0.0,
    ) -> None:
        self.layers = check_layers(layers)
        check_pooling(pooling, tuple(POOLINGS))
        check_choice(top_k, abstain_below)
        if not 0.0 < held_out < 1.0:
            raise RouterError(f"held_out is {held_out}, but it is a share of the rows; set it between 0 and 1")
        if min(epochs, batch_rows, patience, hidden) < 1:
            raise RouterError(
                f"epochs {epochs}, batch_rows {batch_rows}, patience {patience} and hidden {hidden} must be 1 or more"
            )
        if min(complexity_weight, balance_weight) < 0:
            raise RouterError(
                f"complexity_weight {complexity_weight} and balance_weight {balance_weight} must be 0 or more"
            )
        self.pooling = pooling
        self.hidden = hidden
        self.dropout = dropout
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_rows = batch_rows
        self.patience = patience
        self.held_out = held_out
        self.complexity_weight = complexity_weight
        self.balance_weight = balance_weight
        self.top_k = top_k
        self.abstain_below = abstain_below
        self.temperature = 1.0
        self._module: ComplexityModule | None = None

    @property
    def module(self) -> ComplexityModule:
        """The trainable part.

        Raises:
            RouterError: the router is not fitted.
        """
        if self._module is None:
            raise RouterError("the complexity router is not fitted; call fit first, or load a fitted one")
        return self._module

    def logits(self, batch: RouterInput) -> Tensor:
        """Return the logits before the temperature, ``(B, E)``, differentiable, in the module's present mode."""
        return self._read(batch)[0]

    def losses(self, batch: RouterInput, targets: Tensor, scores: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the logits ``(B, E)`` and the mean loss of a batch (see ``GradientRouter``)."""
        read = self._read(batch)
        return read[0], self._loss(read, targets, scores)

    def complexity(self, batch: RouterInput) -> Tensor:
        """Return the estimated complexity of each row, ``(B,)``, between 0 and 1."""
        return self._evaluated(batch)[1]

    def route(self, batch: RouterInput) -> Route:
        """Return the route of every row (see ``Router.route``)."""
        probabilities = (self._evaluated(batch)[0] / self.temperature).softmax(dim=1)
        return Route.from_probabilities(probabilities, top_k=self.top_k, abstain_below=self.abstain_below)

    def fit(
        self,
        inputs: Sequence[RouterInput],
        targets: Tensor,
        *,
        generator: torch.Generator,
        experts: int | None = None,
        **data: Any,
    ) -> None:
        """Train from scratch, stop early on held-out rows, and fit the temperature on them.

        The keyword argument ``scores`` ``(N,)`` gives each row's complexity, NaN where it is not known; without it
        the second output is not trained. The prior is the share of each tier in ``targets``.
        """
        count = check_targets(inputs, targets, experts)
        features = pooled_all(inputs, self.layers, self.pooling)
        given = data.get("scores")
        scores = None if given is None else given.to(features)
        if scores is not None and len(scores) != len(features):
            raise RouterError(f"there are {len(features)} rows, but {len(scores)} scores; give one for each, or none")
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = ComplexityModule(
                features=features.shape[1], hidden=self.hidden, tiers=count, dropout=self.dropout
            ).to(features.device)
            rows = _Rows(features, targets.to(features.device), scores, *split_rows(targets.cpu(), self.held_out))
            mean, std = statistics(features[rows.train])
            module.mean.copy_(mean)
            module.inverse_std.copy_(1.0 / std)
            module.prior.copy_(torch.bincount(rows.targets[rows.train], minlength=count) / len(rows.train))
            self._module, self.temperature = module, 1.0
            self._train(module, rows)
        module.eval()
        with torch.no_grad():
            logits, _ = module(features[rows.held])
        self.temperature = better_temperature(logits, rows.targets[rows.held], 1.0)

    def calibrate(self, inputs: Sequence[RouterInput], targets: Tensor) -> None:
        """Fit the temperature on held-out batches, unless that would raise the calibration error."""
        check_targets(inputs, targets, self.module.out.out_features)
        logits = torch.cat([self._evaluated(batch)[0] for batch in inputs])
        self.temperature = better_temperature(logits, targets, self.temperature)

    def to(self, device: torch.device | str) -> Self:
        """Move the weights to ``device`` and return the router."""
        self.module.to(device)
        return self

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the options and the weights; widths and the number of tiers follow from the weights."""
        names = (
            *("pooling", "hidden", "dropout", "epochs", "learning_rate", "weight_decay", "batch_rows", "patience"),
            *("held_out", "complexity_weight", "balance_weight", "top_k", "abstain_below"),
        )
        options = {"layers": list(self.layers), **{name: getattr(self, name) for name in names}}
        tensors = {f"module.{name}": value.detach() for name, value in self.module.state_dict().items()}
        return options, tensors | {"temperature": torch.tensor(self.temperature, dtype=torch.float64)}

    @classmethod
    def restore(cls, options: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild a router from what ``state`` returned.

        Raises:
            ValueError: the weights do not fit the options.
        """
        router = cls(**options)
        module = ComplexityModule(
            features=tensors["module.mean"].shape[0],
            hidden=router.hidden,
            tiers=tensors["module.out.bias"].shape[0],
            dropout=router.dropout,
        )
        if module.mean.shape[0] % (len(router.layers) * parts(router.pooling)):
            raise ValueError(f"{module.mean.shape[0]} features cannot come from {len(router.layers)} layers")
        module.load_state_dict({k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")})
        router._module = module.eval()
        router.temperature = float(tensors["temperature"])
        return router

    def _read(self, batch: RouterInput) -> tuple[Tensor, Tensor]:
        module = self.module
        found: tuple[Tensor, Tensor] = module(pooled(batch, self.layers, self.pooling))
        return found

    def _evaluated(self, batch: RouterInput) -> tuple[Tensor, Tensor]:
        """Read a batch without dropout and gradients, and leave the module's mode as it was."""
        module = self.module
        training = module.training
        module.eval()
        with torch.no_grad():
            found = self._read(batch)
        module.train(training)
        return found

    def _loss(self, read: tuple[Tensor, Tensor], targets: Tensor, scores: Tensor | None) -> Tensor:
        logits, estimates = read
        loss = functional.cross_entropy(logits, targets)
        if scores is not None:
            loss = loss + self.complexity_weight * squared_error(estimates, scores)
        return loss + self.balance_weight * balance_loss(logits.softmax(dim=1), self.module.prior)

    def _train(self, module: ComplexityModule, rows: _Rows) -> None:
        weights = [parameter for parameter in module.parameters() if parameter.ndim > 1]
        biases = [parameter for parameter in module.parameters() if parameter.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, weight_decay=self.weight_decay)
        best, since = float("inf"), 0
        kept = {name: value.clone() for name, value in module.state_dict().items()}
        for epoch in range(self.epochs):
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * (1.0 - epoch / self.epochs)
            module.train()
            for places in rows.batches(self.batch_rows):
                optimizer.zero_grad()
                loss = self._loss(module(rows.features[places]), rows.targets[places], rows.known(places))
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            module.eval()
            with torch.no_grad():
                seen = module(rows.features[rows.held])
                held = float(self._loss(seen, rows.targets[rows.held], rows.known(rows.held)))
            since += 1
            if held < best:
                best, since = held, 0
                kept = {name: value.clone() for name, value in module.state_dict().items()}
            if since >= self.patience:
                break
        module.load_state_dict(kept)


class _Rows:
    """Pooled rows, split into a training and a held-out part."""

    def __init__(self, features: Tensor, targets: Tensor, scores: Tensor | None, train: Tensor, held: Tensor) -> None:
        self.features, self.targets, self.scores = features, targets, scores
        self.train, self.held = train, held

    def known(self, places: Tensor) -> Tensor | None:
        """Return the scores of some rows, NaN where they are not known; ``None`` where none is."""
        return None if self.scores is None else self.scores[places]

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield the places of the training rows once, in a random order."""
        yield from self.train[torch.randperm(len(self.train))].split(size)  # type: ignore[no-untyped-call]
