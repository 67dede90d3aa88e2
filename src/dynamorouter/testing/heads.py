"""The laws of heads.

Letters: B windows, S positions, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from dynamorouter.model.heads.base import Head, WindowTarget, heads
from dynamorouter.tasks.kinds import head_kinds
from dynamorouter.testing.contract import Contract, require

WIDTH, POSITIONS = 8, 6


class HeadContract(Contract):
    """The laws of heads that read hidden states.

    Attributes:
        head: the class.
        labels: of a task that it answers.
        targets: what some windows are trained on, two at least; of at most 6 positions.
        options: of its constructor.
        name: under which it is registered, where it is; its kind of task has the same name.
    """

    head: ClassVar[type[Head]]
    labels: ClassVar[Sequence[str]] = ()
    targets: ClassVar[Sequence[WindowTarget]]
    options: ClassVar[Mapping[str, Any]] = {}
    name: ClassVar[str] = ""

    def built(self, seed: int = 0) -> Head:
        """Return a head with weights drawn by ``seed``, which drops nothing."""
        head = self.head(WIDTH, self.labels, **self.options).initialise(torch.Generator().manual_seed(seed))
        return head.eval()

    def hidden(self) -> tuple[Tensor, Tensor]:
        """Return hidden states ``(B, S, D)`` and a mask ``(B, S)`` of whole windows."""
        rows = len(self.targets)
        states = torch.randn(rows, POSITIONS, WIDTH, generator=torch.Generator().manual_seed(1))
        return states, torch.ones(rows, POSITIONS, dtype=torch.int64)

    def test_is_what_the_registry_takes(self) -> None:
        """The class has all that a head has, and its kind of task is known under the same name."""
        require(not heads.fault(self.head), heads.fault(self.head))
        require(not self.name or self.name in head_kinds, f"there is no kind of task {self.name!r} for it")

    def test_each_window_has_a_loss_that_trains_it(self) -> None:
        """The loss is one finite number a window, and falls when the head follows its gradient."""
        head, (states, mask) = self.built(), self.hidden()
        loss = head.loss(states, mask, self.targets)
        require(loss.shape == (len(self.targets),), f"the loss has shape {tuple(loss.shape)}, not one per window")
        require(bool(loss.isfinite().all()), "a loss is not finite")
        require(all(head.units(target) >= 1 for target in self.targets), "a target counts for nothing in the loss")
        optimizer = torch.optim.SGD(head.parameters(), lr=0.01)
        loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        before, after = (float(one.detach().sum()) for one in (loss, head.loss(states, mask, self.targets)))
        require(after < before, "a small step along the gradient does not lower the loss")

    def test_a_window_alone_has_the_same_loss(self) -> None:
        """A window's loss depends on that window alone."""
        head, (states, mask) = self.built(), self.hidden()
        together = head.loss(states, mask, self.targets)
        for row in range(len(self.targets)):
            alone = head.loss(states[row : row + 1], mask[row : row + 1], self.targets[row : row + 1])
            torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)

    def test_padding_changes_nothing(self) -> None:
        """Positions after a window's end are not read."""
        head, (states, mask) = self.built(), self.hidden()
        padded = head.loss(pad(states, (0, 0, 0, 3), value=7.0), pad(mask, (0, 3)), self.targets)
        torch.testing.assert_close(padded, head.loss(states, mask, self.targets), rtol=1e-5, atol=1e-5)

    def test_saved_and_loaded_is_the_same(self) -> None:
        """Labels, options and weights are all there is to a head."""
        head, (states, mask) = self.built(seed=1), self.hidden()
        again = self.head(head.width, head.labels, **head.options).eval()
        again.load_state_dict(head.state_dict())
        torch.testing.assert_close(
            again.loss(states, mask, self.targets), head.loss(states, mask, self.targets), rtol=0.0, atol=0.0
        )
