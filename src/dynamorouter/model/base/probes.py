"""Small passes that find out what an architecture can do, in place of lists of names kept by hand.

Letters: B batch, S positions.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from dynamorouter.errors import ConfigError
from dynamorouter.model.base.config import BaseSpec
from dynamorouter.model.base.kinds import Kind
from dynamorouter.model.text.tokenize import Batch, TextEncoder

TOKENS, TOLERANCE = 5, 1e-2
_WRONG = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


class Probed(Protocol):
    """A base, as a probe sees it (see ``model.base.base``)."""

    spec: BaseSpec
    kind: Kind
    config: Any
    encoder: TextEncoder

    @property
    def device(self) -> torch.device:
        """The device of the base's parameters."""

    def forward(self, batch: Batch, gate: None) -> Tensor:
        """Run the whole base on a batch: ``(B, S, D)``."""

    def forward_to(self, batch: Batch, depth: int) -> dict[int, Tensor]:
        """Run the first blocks: ``{layer: (B, S, D)}``."""

    def forward_from(self, hidden: Tensor, mask: Tensor, gate: None, *, depth: int) -> Tensor:
        """Go on from the hidden states of a layer to the end: ``(B, S, D)``."""


def _row(base: Probed, start: int, stop: int) -> Batch:
    ids = torch.arange(start, stop, device=base.device)[None] % int(base.config.vocab_size)
    types = torch.zeros_like(ids) if base.encoder.segments else None
    return Batch(ids=ids, types=types, mask=torch.ones_like(ids))


def _differ(actual: Tensor | None, expected: Tensor) -> bool:
    return actual is None or not torch.allclose(actual.float(), expected.float(), atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def check_cut(base: Probed, depth: int) -> None:
    """See that a pass cut at ``depth`` is the whole pass.

    Raises:
        ConfigError: it is not.
    """
    batch = _row(base, 0, TOKENS)
    uncut = base.forward(batch, None)
    try:
        states = base.forward_to(batch, depth)
        cut: Tensor | None = base.forward_from(states[depth], batch.mask, None, depth=depth)
    except _WRONG:
        cut = None
    if _differ(cut, uncut):
        raise ConfigError(
            f"a pass of {base.config.model_type} (base {base.spec.name!r}) cannot be cut at block {depth}, because its "
            "blocks share more than hidden states; use trunk_depth=0 on this base"
        )


@torch.no_grad()
def check_packing(base: Probed, takes_positions: bool) -> None:
    """See that two examples in one row are as each of them alone.

    Raises:
        ConfigError: they are not, or the base cannot read such a row at all.
    """
    first, second = _row(base, 0, TOKENS), _row(base, TOKENS, 2 * TOKENS - 1)
    packed: Tensor | None = None
    if base.kind == "decoder" and takes_positions:
        ids = torch.cat([first.ids, second.ids], dim=1)
        positions = torch.cat([torch.arange(batch.ids.shape[1], device=base.device) for batch in (first, second)])
        packed = base.forward(Batch(ids=ids, types=None, mask=torch.ones_like(ids), positions=positions[None]), None)
    alone = torch.cat([base.forward(batch, None) for batch in (first, second)], dim=1)
    if _differ(packed, alone):
        raise ConfigError(
            f"{base.config.model_type} (base {base.spec.name!r}) cannot read several examples in one row and keep them "
            "apart; train on this base without packing"
        )
