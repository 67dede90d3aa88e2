"""What informed merge methods need, made of rows by passes over the base.

    with observed("grams", base, experts, rows) as seen:
        result = merge_experts(experts, method="regmean", grams=seen)

``rows`` are by name of expert. The experts are mounted meanwhile, and what they cover
is as before afterwards.

Letters: B examples, S positions, D in, O out, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dynamorouter.errors import MergeError, one_of
from dynamorouter.merging.entropy import entropy_of
from dynamorouter.merging.registry import NEEDS, Need
from dynamorouter.model.base.base import Base
from dynamorouter.model.lora.bank import LoraBank
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.lora.gates import RowGate, SoftGate
from dynamorouter.model.lora.mount import Mounted, mount
from dynamorouter.model.text.examples import TrainingExample, make_examples
from dynamorouter.model.text.passes import ExamplePasses
from dynamorouter.model.text.trunk_cache import CacheOptions, TrunkCache
from dynamorouter.tasks.record import Record
from dynamorouter.utils.seeding import seeded

Rows = Mapping[str, Sequence[Record]]
Coefficients = Mapping[str, Tensor]
"""By layer, ``(E,)``, in the order of the experts' sorted names."""


@contextmanager
def observed(
    need: Need,
    base: Base,
    experts: Sequence[Expert],
    rows: Rows,
    *,
    limit: int = 256,
    budget: int = 4096,
    seed: int = 0,
) -> Iterator[Any]:
    """Give what a method needs; ``objective`` and ``entropy`` can be called within the ``with`` block alone.

    Args:
        need: of the method, ``grams``, ``fisher``, ``objective`` or ``entropy``.
        base: of all the experts.
        experts: that are to be merged.
        rows: of each expert's own task; ``entropy`` does not look at their targets.
        limit: most rows of each that are read, drawn by the seed.
        budget: most tokens in a pass, padding included.
        seed: of the draw.

    Raises:
        MergeError: an expert has no rows, or a task's head has no classes to be certain about.
    """
    ordered = sorted(experts, key=lambda expert: expert.name)
    missing = [expert.name for expert in ordered if not rows.get(expert.name)]
    if missing:
        raise MergeError(
            f"there are no rows of {one_of(map(repr, missing))} to make {need} of ({NEEDS[need]}); "
            "give rows of every expert's task"
        )
    chosen = {expert.name: _draw(rows[expert.name], limit, seed, expert.name) for expert in ordered}
    makers: dict[str, Callable[..., Any]] = {
        "grams": second_moments,
        "fisher": squared_gradients,
        "objective": mean_loss,
        "entropy": mean_entropy,
    }
    with base.context.lock, mount(base, ordered, trainable=True) as mounted:  # the passes of other threads wait
        yield makers[need](mounted, ordered, chosen, budget=budget)


def second_moments(
    mounted: Mounted, experts: Sequence[Expert], rows: Rows, *, budget: int
) -> dict[str, dict[str, Tensor]]:
    """Return the mean of x x^T over the inputs of each layer, ``(D, D)`` float64, by expert and layer.

    Each expert is at work on its own rows; padding is left out.
    """
    base = mounted.base
    moments_by_expert = {}
    for index, expert in enumerate(experts):
        moments = _Moments()
        passes = _passes(base, expert, rows[expert.name], budget)
        for batch in passes.batches:
            moments.mask = batch.batch.mask.bool()
            with torch.inference_mode(), _watched(mounted.banks, moments.note):
                passes.forward(batch, _row_gate(index, len(batch), base))
        moments_by_expert[expert.name] = {
            name: (total / moments.counts[name]).cpu() for name, total in moments.sums.items()
        }
    return moments_by_expert


class _Moments:
    """Sums of x x^T over the tokens of the running batch, by layer."""

    def __init__(self) -> None:
        self.mask = torch.empty(0)
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def note(self, name: str, x: Tensor) -> None:
        """Add the inputs ``(B, S, D)`` of a layer; a single example has no padding."""
        tokens = (x.flatten(0, 1) if len(x) == 1 else x[self.mask]).double()
        product = tokens.T @ tokens
        self.sums[name] = self.sums[name] + product if name in self.sums else product
        self.counts[name] = self.counts.get(name, 0) + len(tokens)


def squared_gradients(
    mounted: Mounted, experts: Sequence[Expert], rows: Rows, *, budget: int
) -> dict[str, dict[str, Tensor]]:
    """Return the mean square of the loss's gradient by each entry of each layer, ``(O, D)`` float32.

    By expert and layer; each example's gradient is squared by itself. The labels are those of the rows (the empirical
    Fisher information).
    """
    base = mounted.base
    squares_by_expert = {}
    for index, expert in enumerate(experts):
        squares = _Squares()
        count = 0
        passes = _passes(base, expert, rows[expert.name], budget)
        for batch in passes.batches:
            with torch.enable_grad(), _watched(mounted.banks, squares.keep, squares.square):
                hidden, mask = passes.forward(batch, _row_gate(index, len(batch), base))
                loss = expert.head.loss(hidden, mask, batch.targets).sum()
                loss.backward()  # type: ignore[no-untyped-call]
            _clear_gradients(mounted, expert)
            count += len(batch)
        squares_by_expert[expert.name] = {name: (total / count).cpu() for name, total in squares.sums.items()}
    return squares_by_expert


class _Squares:
    """Sums of the squares of each example's gradient by a layer's weight, by layer."""

    def __init__(self) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}

    def keep(self, name: str, x: Tensor) -> None:
        """Keep the inputs ``(B, S, D)`` of a layer for the way back."""
        self.inputs[name] = x.detach()

    def square(self, name: str, gradient: Tensor) -> None:
        """Add the squares of g^T x of each example, g being the gradient ``(B, S, O)`` of the layer's output."""
        squares = torch.einsum("bso,bsd->bod", gradient, self.inputs.pop(name)).square().sum(dim=0)
        self.sums[name] = self.sums[name] + squares if name in self.sums else squares


def mean_loss(
    mounted: Mounted, experts: Sequence[Expert], rows: Rows, *, budget: int
) -> Callable[[Coefficients], float]:
    """Return a function from coefficients to the mean over tasks of each task's mean loss."""
    depth = min(expert.lora.trunk_depth for expert in experts)
    passes_by_expert = [_passes(mounted.base, expert, rows[expert.name], budget, depth=depth) for expert in experts]

    def gates(positions: Sequence[int]) -> SoftGate:
        return _mixture_gate(len(positions), len(experts), mounted.base)

    def loss_at(coefficients: Coefficients) -> float:
        means = []
        with torch.inference_mode(), mixing(mounted, coefficients):
            for expert, passes in zip(experts, passes_by_expert, strict=True):
                losses = passes.losses(expert.head, gates)
                means.append(sum(loss for loss, _ in losses) / sum(units for _, units in losses))
        return sum(means) / len(experts)

    return loss_at


def mean_entropy(
    mounted: Mounted, experts: Sequence[Expert], rows: Rows, *, budget: int, batch_rows: int = 16
) -> Callable[[Coefficients], Tensor]:
    """Return a function from coefficients to the mean over tasks of the entropy of the answers to a batch.

    It goes on to the next batch with every call.
    """
    base = mounted.base
    depth = min(expert.lora.trunk_depth for expert in experts)
    readers = [entropy_of(expert) for expert in experts]
    texts_by_expert = [[(record.text, record.pair) for record in rows[expert.name]] for expert in experts]
    windows_by_expert = [
        [w for w in base.encoder.windows(texts, max_tokens=e.task.max_tokens, stride=e.task.stride) if w.part == 0]
        for e, texts in zip(experts, texts_by_expert, strict=True)
    ]  # the first window of each row
    passes_by_expert = []
    for windows in windows_by_expert:
        examples = [TrainingExample.unlabelled(window) for window in windows]
        trunk = _trunk(base, examples, budget, depth)
        passes_by_expert.append(ExamplePasses(base, examples, budget=None, rows=batch_rows, trunk=trunk))
    calls = 0

    def entropy_at(coefficients: Coefficients) -> Tensor:
        nonlocal calls
        values = []
        with torch.enable_grad(), mixing(mounted, coefficients):
            for entropy, texts, windows, passes in zip(
                readers, texts_by_expert, windows_by_expert, passes_by_expert, strict=True
            ):
                batch = passes.batches[calls % len(passes.batches)]
                gate = _mixture_gate(len(batch), len(experts), base)
                hidden, mask = passes.forward(batch, gate, states=passes.states(batch), depth=depth)
                chosen = [windows[i] for i in batch.positions]
                values.append(entropy(hidden, mask, chosen, [texts[window.row] for window in chosen]))
        calls += 1
        return torch.stack(values).mean()

    return entropy_at


@contextmanager
def mixing(mounted: Mounted, coefficients: Coefficients) -> Iterator[None]:
    """Let every bank add up its experts with these coefficients; they may be differentiated."""
    before = {name: bank.scaling for name, bank in mounted.banks.items()}
    for name, bank in mounted.banks.items():
        bank.scaling = before[name] * coefficients[name].to(before[name])
        bank.requires_grad_(False)
    try:
        yield
    finally:
        for name, bank in mounted.banks.items():
            bank.scaling = before[name]


@contextmanager
def _watched(
    banks: Mapping[str, LoraBank],
    note: Callable[[str, Tensor], None],
    back: Callable[[str, Tensor], None] | None = None,
) -> Iterator[None]:
    """Call ``note`` with the input of every bank, and ``back`` with the gradient of its output."""

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            note(name, args[0])
            if back is not None:
                output.register_hook(lambda gradient: back(name, gradient))  # type: ignore[no-untyped-call]

        return hook

    hooks = [bank.register_forward_hook(watch(name)) for name, bank in banks.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _passes(base: Base, expert: Expert, records: Sequence[Record], budget: int, *, depth: int = 0) -> ExamplePasses:
    """Batch rows as examples, on from a trunk; singly on an encoder-decoder, whose two stacks are padded apart."""
    examples = make_examples(base, expert.head, expert.task, records, expert=0)
    trunk = _trunk(base, examples, budget, depth)
    return ExamplePasses(base, examples, budget=None if base.kind == "seq2seq" else budget, trunk=trunk)


def _trunk(base: Base, examples: Sequence[TrainingExample], budget: int, depth: int) -> TrunkCache:
    """Return the outputs of a trunk, computed once for all that will be asked; none where the trunk has no depth."""
    trunk = TrunkCache(base, examples, depth=depth, limit=CacheOptions().limit, budget=budget)
    trunk.fill()
    return trunk


def _row_gate(index: int, rows: int, base: Base) -> RowGate:
    return RowGate(torch.full((rows,), index, device=base.device))


def _mixture_gate(rows: int, experts: int, base: Base) -> SoftGate:
    return SoftGate(torch.ones(rows, experts, device=base.device))


def _clear_gradients(mounted: Mounted, expert: Expert) -> None:
    """Drop gradients that a pass has left behind."""
    for bank in mounted.banks.values():
        bank.zero_grad(set_to_none=True)
    expert.head.zero_grad(set_to_none=True)


def _draw(records: Sequence[Record], limit: int, seed: int, name: str) -> list[Record]:
    order = torch.randperm(len(records), generator=seeded(seed, "merge", "rows", name)).tolist()
    return [records[i] for i in order[:limit]]
