"""Experts that join a fitted router: what it makes of the old ones stays, the new ones are learned beside them.

A router that is fitted again on a few kept features of old experts and many rows of a new one forgets the old ones. So
the old network is frozen, and the logit of a new expert is learned from a few hidden units of its own and from those
that are there (progressive networks: Rusu et al., 2016). Where a new expert is taken away, the old routes are back.

Letters: B batch, N rows, F features, H old hidden units, G new ones, E old experts, K new ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu

from dynamorouter.routing.nets import RouterModule
from dynamorouter.utils.optim import Optimizer, decay_groups, warmup_linear

UNITS = 32
"""Hidden units G that join with new experts."""
STEPS = 240
"""Steps that the new weights are trained for."""


def balanced(positions: Tensor, targets: Tensor) -> Tensor:
    """Repeat positions ``(n,)`` of rows so that every expert has as many as the one with most, sorted."""
    groups = [positions[targets[positions].eq(expert)] for expert in sorted(set(targets[positions].tolist()))]
    most = max(len(group) for group in groups)
    return torch.cat([group.repeat(-(-most // len(group)))[:most] for group in groups]).sort().values


class Growth(nn.Module):
    """The new part of a network, with the old one beside it, which it never changes.

    Args:
        module: the old network, with a pooling without parameters and without a score head.
        keep: its experts that stay, E of them, in their new order.
        experts: K.
        dropout: on hidden units.
    """

    def __init__(self, module: RouterModule, keep: Sequence[int], experts: int, *, dropout: float) -> None:
        super().__init__()
        old_units = 0 if module.inner is None else module.inner.out_features
        self.old, self.keep = [module], list(keep)  # in a list, so that it is no part of what is trained
        self.inner = nn.Linear(len(module.mean), UNITS) if old_units else None
        self.out = nn.Linear(old_units + UNITS if old_units else len(module.mean), experts)
        self.dropout = nn.Dropout(dropout)

    @torch.no_grad()
    def read_old(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return standardised features ``(N, F)``, old hidden units ``(N, H)``, which may be the same, and old logits.

        Args:
            features: pooled rows, ``(N, F)``.
        """
        (old,) = self.old
        standard = (features - old.mean) * old.inverse_std
        hidden = standard if old.inner is None else gelu(old.inner(standard))
        return standard, hidden, old.out(hidden)[:, self.keep]

    def forward(self, standard: Tensor, old_hidden: Tensor, old_logits: Tensor) -> Tensor:
        """Return the logits ``(B, E + K)`` of what ``read_old`` returned, those of old experts as they were."""
        hidden = self.dropout(old_hidden)
        if self.inner is not None:
            hidden = torch.cat([hidden, self.dropout(gelu(self.inner(standard)))], dim=1)
        return torch.cat([old_logits, self.out(hidden)], dim=1)

    @torch.no_grad()
    def write_into(self, module: RouterModule) -> None:
        """Write both parts into a network for E + K experts, wider by ``UNITS`` where there is a hidden layer."""
        (old,) = self.old
        kept_weight, kept_bias = old.out.weight[self.keep], old.out.bias[self.keep]
        module.mean.copy_(old.mean)
        module.inverse_std.copy_(old.inverse_std)
        if old.inner is not None and self.inner is not None and module.inner is not None:
            module.inner.weight.copy_(torch.cat([old.inner.weight, self.inner.weight]))
            module.inner.bias.copy_(torch.cat([old.inner.bias, self.inner.bias]))
            kept_weight = torch.cat([kept_weight, kept_weight.new_zeros(len(self.keep), UNITS)], dim=1)
        module.out.weight.copy_(torch.cat([kept_weight, self.out.weight]))
        module.out.bias.copy_(torch.cat([kept_bias, self.out.bias]))


def train_growth(
    growth: Growth,
    features: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    learning_rate: float,
    weight_decay: float,
    batch_rows: int,
) -> None:
    """Train the new part on rows of all experts, each of which counts alike however many rows it has.

    Args:
        growth: is left in training mode.
        features: pooled rows, ``(N, F)``.
        targets: index of each row's expert, the old ones first, ``(N,)``.
        temperature: at which the logits are read.
        learning_rate: of AdamW at first; it falls linearly.
        weight_decay: of AdamW, on matrices alone.
        batch_rows: rows per step.
    """
    growth.train()
    optimizer = Optimizer(decay_groups(growth.parameters(), learning_rate, weight_decay))
    old = growth.read_old(features)
    rows = balanced(torch.arange(len(targets), device=targets.device), targets)
    for step in range(STEPS):
        batch = rows[torch.randint(len(rows), (batch_rows,)).to(rows.device)]
        loss = cross_entropy(growth(*(part[batch] for part in old)) / temperature, targets[batch])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(warmup_linear(step, STEPS))
