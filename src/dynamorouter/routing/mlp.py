"""The task router: an MLP over pooled hidden states of the trunk, trained on the rows of every expert.

A text's task is best read from the lower middle of an encoder (layer by layer probing: Tenney et al., 2019, "BERT
Rediscovers the Classical NLP Pipeline"), so several layers are pooled and joined. The mean tells what the words are
about; the last token adds, undiluted, how long the row is and whether it came as a pair. The logits are calibrated by
one temperature (Guo et al., 2017).

Letters: N rows, B batch, S positions, D width, F features, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dynamorouter.errors import RouterError
from dynamorouter.routing.base import GradientRouter, Route, RouterInput, check_choice, check_targets, routers
from dynamorouter.routing.calibration import better_temperature
from dynamorouter.routing.features import POOLINGS, check_layers, check_pooling, layer_states, parts, statistics
from dynamorouter.routing.nets import RouterModule, base_features

ALLOWED = ("attention", *POOLINGS)
"""Poolings of the task MLP."""


@routers.register("mlp")
class TaskMLP(GradientRouter):
    """Chooses experts with an MLP over pooled hidden states.

    Args:
        layers: the layers that are pooled and joined.
        pooling: ``mean`` of the tokens, ``cls`` (the first token), ``last`` (the last one), ``mean_cls`` or
            ``mean_last`` (both, joined), or ``attention`` with learned queries.
        hidden: width of the hidden layer; 0 for a linear classifier.
        dropout: dropout in training, on the features and on the hidden layer.
        epochs: at most so many passes over the rows.
        learning_rate: of AdamW in the first epoch; it falls linearly with the epochs, towards zero.
        weight_decay: of AdamW.
        batch_rows: rows per step; with ``attention`` the batches are kept as given.
        patience: epochs without a better held-out loss before training stops.
        held_out: share of the rows held out for early stopping and the temperature.
        top_k: experts per row.
        abstain_below: a confidence below this marks the row as abstained.

    Raises:
        RouterError: an option is out of range.
    """

    def __init__(
        self,
        *,
        layers: Sequence[int] = (0, 1, 2, 3),
        pooling: str = "mean_cls",
        hidden: int = 128,
        dropout: float = 0.3,
        epochs: int = 20,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.5,
        batch_rows: int = 128,
        patience: int = 5,
        held_out: float = 0.1,
        top_k: int = 1,
        abstain_below: float = 0.0,
    ) -> None:
        self.layers = check_layers(layers)
        check_pooling(pooling, ALLOWED)
        check_choice(top_k, abstain_below)
        if not 0.0 < held_out < 1.0:
            raise RouterError(f"held_out is {held_out}, but it is a share of the rows; set it between 0 and 1")
        if min(epochs, batch_rows, patience) < 1 or hidden < 0:
            raise RouterError(
                f"epochs {epochs}, batch_rows {batch_rows} and patience {patience} must be 1 or more, "
                f"and hidden {hidden} must be 0 or more"
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
        self.top_k = top_k
        self.abstain_below = abstain_below
        self.temperature = 1.0
        self._module: RouterModule | None = None

    @property
    def module(self) -> RouterModule:
        """The trainable part, for a joint phase.

        Raises:
            RouterError: the router is not fitted.
        """
        if self._module is None:
            raise RouterError("the mlp router is not fitted; call fit first, or load a fitted one")
        return self._module

    def logits(self, batch: RouterInput) -> Tensor:
        """Return the logits before the temperature, ``(B, E)``, differentiable, in the module's present mode."""
        logits: Tensor = self.module(batch)
        return logits

    def losses(self, batch: RouterInput, targets: Tensor, scores: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the logits ``(B, E)`` and the mean cross-entropy of the experts; ``scores`` are not used."""
        logits = self.logits(batch)
        return logits, cross_entropy(logits, targets)

    def route(self, batch: RouterInput) -> Route:
        """Return the route of every row (see ``Router.route``)."""
        module = self.module
        training = module.training
        module.eval()
        with torch.no_grad():
            probabilities = (self.logits(batch) / self.temperature).softmax(dim=1)
        module.train(training)
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

        The same generator seed on the same machine gives the same weights to the last bit; the global source of
        chance is neither read nor moved.
        """
        count = check_targets(inputs, targets, experts)
        first = inputs[0]
        states = layer_states(first, self.layers[0])
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = RouterModule(
                layers=self.layers,
                pooling=self.pooling,
                width=states.shape[2],
                hidden=self.hidden,
                experts=count,
                dropout=self.dropout,
            ).to(states.device)
            rows = _Rows(module, inputs, targets.to(states.device), held_out=self.held_out)
            module.standardise(*statistics(rows.features[rows.train]))
            self._train(module, rows)
        module.eval()
        self._module, self.temperature = module, 1.0
        with torch.no_grad():
            logits = rows.logits(rows.held)
        self.temperature = better_temperature(logits, rows.targets[rows.held], 1.0)

    def _train(self, module: RouterModule, rows: _Rows) -> None:
        decayed = [parameter for parameter in module.parameters() if parameter.ndim > 1]
        plain = [parameter for parameter in module.parameters() if parameter.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, weight_decay=self.weight_decay)
        best, since = float("inf"), 0
        kept = {name: value.clone() for name, value in module.state_dict().items()}
        for epoch in range(self.epochs):
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * (1.0 - epoch / self.epochs)
            module.train()
            for features, targets in rows.batches(self.batch_rows):
                loss = cross_entropy(module.classify(features), targets)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            module.eval()
            with torch.no_grad():
                held = float(cross_entropy(rows.logits(rows.held), rows.targets[rows.held]))
            if held < best:
                best, since = held, 0
                kept = {name: value.clone() for name, value in module.state_dict().items()}
            else:
                since += 1
            if since >= self.patience:
                break
        module.load_state_dict(kept)

    def calibrate(self, inputs: Sequence[RouterInput], targets: Tensor) -> None:
        """Fit the temperature on held-out batches, unless that would raise the calibration error."""
        check_targets(inputs, targets, self.module.out.out_features)
        training = self.module.training
        self.module.eval()
        with torch.no_grad():
            logits = torch.cat([self.logits(batch) for batch in inputs])
        self.module.train(training)
        self.temperature = better_temperature(logits, targets, self.temperature)

    def to(self, device: torch.device | str) -> Self:
        """Move the weights to ``device`` and return the router."""
        self.module.to(device)
        return self

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the options and the weights; widths and the number of experts follow from the weights."""
        options = {
            "layers": list(self.layers),
            "pooling": self.pooling,
            "hidden": self.hidden,
            "dropout": self.dropout,
            "epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "batch_rows": self.batch_rows,
            "patience": self.patience,
            "held_out": self.held_out,
            "top_k": self.top_k,
            "abstain_below": self.abstain_below,
        }
        tensors = {f"module.{name}": value.detach() for name, value in self.module.state_dict().items()}
        return options, tensors | {"temperature": torch.tensor(self.temperature, dtype=torch.float64)}

    @classmethod
    def restore(cls, options: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild a router from what ``state`` returned."""
        router = cls(**options)
        module = RouterModule(
            layers=router.layers,
            pooling=router.pooling,
            width=tensors["module.mean"].shape[0] // (len(router.layers) * parts(router.pooling)),
            hidden=router.hidden,
            experts=tensors["module.out.bias"].shape[0],
            dropout=router.dropout,
        )
        prefix = "module."
        module.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
        router._module = module.eval()
        router.temperature = float(tensors["temperature"])
        return router


class _Rows:
    """Rows as training draws them, split into a training and a held-out part.

    Poolings without parameters are computed once; attention pools each batch of token states anew.
    """

    def __init__(
        self, module: RouterModule, inputs: Sequence[RouterInput], targets: Tensor, *, held_out: float
    ) -> None:
        self.module = module
        self.inputs = inputs
        self.targets = targets
        with torch.no_grad():
            self.features = torch.cat([base_features(module, batch) for batch in inputs])
        self.train, self.held = split_rows(targets.cpu(), held_out)

    def batches(self, batch_rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the training rows once in a random order, as pooled features ``(B, F)`` and targets ``(B,)``."""
        if self.module.attention is None:
            for rows in self.train[torch.randperm(len(self.train))].split(batch_rows):  # type: ignore[no-untyped-call]
                yield self.features[rows], self.targets[rows]
            return
        parts = list(self._parts(self.train))
        for place in torch.randperm(len(parts)).tolist():
            batch, local, rows = parts[place]
            yield self.module.pool(batch.rows(local)), self.targets[rows]

    def logits(self, rows: Tensor) -> Tensor:
        """Return the logits of the rows at sorted places ``rows``, ``(n, E)``."""
        if self.module.attention is None:
            return self.module.classify(self.features[rows])
        return torch.cat([self.module(batch.rows(local)) for batch, local, _ in self._parts(rows)])

    def _parts(self, rows: Tensor) -> Iterator[tuple[RouterInput, Tensor, Tensor]]:
        """Yield each batch that holds some of ``rows``, their places in the batch, and their places overall."""
        start = 0
        for batch in self.inputs:
            inside = rows[(rows >= start) & (rows < start + len(batch))]
            if len(inside):
                yield batch, inside - start, inside
            start += len(batch)


def split_rows(targets: Tensor, held_out: float) -> tuple[Tensor, Tensor]:
    """Split places ``0..N-1`` into a training and a held-out part, both sorted, in the same proportion per expert.

    An expert with a single row keeps it in training.

    Raises:
        RouterError: no expert has two rows, so that nothing can be held out.
    """
    train, held = [], []
    for expert in sorted(set(targets.tolist())):
        rows = targets.eq(expert).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows))]
        out = min(max(1, round(len(rows) * held_out)), len(rows) - 1)
        held.append(rows[:out])
        train.append(rows[out:])
    if not sum(len(rows) for rows in held):
        raise RouterError(
            f"the router got {len(targets)} rows, one per expert; give at least two of some expert, "
            "so that one can be held out for early stopping"
        )
    return torch.cat(train).sort().values, torch.cat(held).sort().values
