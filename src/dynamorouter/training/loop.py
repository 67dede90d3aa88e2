"""The training loop: rows of all tasks share a batch, each goes through its own expert and head.

A round takes one batch from every expert that is still learning, sorts the rows of all of them by length, cuts them
into micro-batches under a token budget, adds the gradients up, and lets every expert take its own step. An expert's
batches, and so its gradients, are the same whether it is trained alone or beside others.

Letters: B batch, S positions, D width.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dynamorouter.errors import LibraryError, TrainingError
from dynamorouter.model.base.gate import Dropout, Gate
from dynamorouter.model.heads.base import Head
from dynamorouter.model.lora.gates import RowGate
from dynamorouter.model.lora.mount import Mounted
from dynamorouter.model.text.batching import rows_of
from dynamorouter.model.text.examples import TrainingExample
from dynamorouter.model.text.packing import Layout, Rows, last_states, plan_micro_batches
from dynamorouter.model.text.tokenize import Batch
from dynamorouter.model.text.trunk_cache import TrunkCache
from dynamorouter.training.learner import ExpertLearner, units_of
from dynamorouter.training.log import UNLOGGED, TrainingLog
from dynamorouter.utils.files import read_tensors, write_tensors
from dynamorouter.utils.optim import LossScale
from dynamorouter.utils.progress import SILENT, Progress


class RouterLearner(Protocol):
    """A router that learns together with the experts (see ``training.joint``)."""

    def learns(self, turn: int) -> tuple[bool, bool]:
        """Tell whether the router, and whether the experts, step in a round."""

    def skip(self) -> tuple[float, float]:
        """Leave a step out and return the mean loss since the last one, and 0 for the gradient's norm."""

    def gate(
        self, batch: Batch, experts: Tensor, examples: Sequence[TrainingExample]
    ) -> tuple[Gate, Tensor, Tensor, int]:
        """Return the gate, the router's summed loss, and the trunk's states ``(B, S, D)`` with their depth."""

    def begin(self, rows: int) -> None:
        """Take note of the number of rows in the coming step."""

    def step(self, *, scale: float) -> tuple[float, float]:
        """Take an optimizer step and return the mean loss since the last one and the gradient's norm.

        The step is left out where the norm is not finite.
        """

    def state(self) -> dict[str, Tensor]:
        """Return everything that a checkpoint needs."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what ``state`` returned."""


Score = Callable[[Head, int], float]
"""Returns the primary score of a head over the expert of an index, on held-out rows."""


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """What all experts of a run share.

    Attributes:
        tokens_per_batch: most tokens in a micro-batch, padding included.
        checkpoint_every: rounds between checkpoints.
        checkpoint_seconds: most seconds between checkpoints.
        seed: of dropout.
        log_every: rounds between notes in the log.
        packing: lay several short examples of an expert into one row, where the base is a decoder.
    """

    tokens_per_batch: int = 4096
    checkpoint_every: int = 200
    checkpoint_seconds: float = 60.0
    seed: int = 0
    log_every: int = 10
    packing: bool = False


class PackedLoop:
    """Trains several experts of one base at once.

    Args:
        mounted: the experts that learn, in the order of their learners.
        learners: by expert index.
        examples: of all of them; each learner knows its own positions.
        cache: the trunk's outputs for ``examples``.
        validators: score an expert by its index; one that has none scores 0 after every epoch.
        options: shared settings.
        log: told of losses, scores and checkpoints.
        checkpoint: file to resume from and to write to; ``None`` writes none.
        router: learns together with the experts and sets their gates; ``None`` sends each row to its own expert.
        progress: told the number of windows and the mean loss after each round.
    """

    def __init__(
        self,
        mounted: Mounted,
        learners: Sequence[ExpertLearner],
        examples: Sequence[TrainingExample],
        cache: TrunkCache,
        *,
        validators: Mapping[int, Score],
        options: LoopOptions,
        log: TrainingLog = UNLOGGED,
        checkpoint: Path | None = None,
        router: RouterLearner | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self.mounted, self.base = mounted, mounted.base
        self.learners = list(learners)
        self.examples = examples
        self.cache = cache
        self.validators = validators
        self.options = options
        self.log = log
        self.checkpoint = checkpoint
        self.router = router
        self.progress = progress
        self.round = 0
        self.scale = LossScale.of(self.base.dtype)
        drops = [learner.plan.config.dropout for learner in self.learners]
        self._dropout = torch.tensor(drops, device=self.base.device)
        self._same_dropout = len(set(drops)) <= 1

    def run(self, label: str = "experts") -> None:
        """Train until every expert is done; then put each one's best weights back.

        Args:
            label: of the progress.
        """
        self.progress.start(label, sum(len(learner.examples) * learner.plan.config.epochs for learner in self.learners))
        torch.manual_seed(self.options.seed)
        if self.checkpoint is not None and self.checkpoint.is_file():
            self._load(self.checkpoint)
        last = time.monotonic()
        for bank in self.mounted.banks.values():
            bank.requires_grad_(True).base.requires_grad_(False)
        while active := [learner for learner in self.learners if not learner.progress.done]:
            self._round(active)
            due = self.round % self.options.checkpoint_every == 0
            if due or time.monotonic() - last > self.options.checkpoint_seconds:
                self._save()
                last = time.monotonic()
        self._save()
        for learner in self.learners:
            learner.restore_best()
        for bank in self.mounted.banks.values():
            bank.requires_grad_(False)

    def _round(self, active: Sequence[ExpertLearner]) -> None:
        losses = self._accumulate(active)
        router, experts = (False, True) if self.router is None else self.router.learns(self.round)
        norms = {t.name: t.step(scale=self.scale.value) if experts else t.skip() for t in active}
        if self.router is not None:
            stepped = self.router.step(scale=self.scale.value) if router else self.router.skip()
            losses["router"], norms["router"] = stepped
        for bank in self.mounted.banks.values():
            bank.a.grad = bank.b.grad = None
        self._check(losses, norms)
        self.round += 1
        if self.round % self.options.log_every == 0:
            notes = {f"loss/{name}": value for name, value in losses.items()}
            self.log.note(self.round, notes | {f"norm/{name}": value for name, value in norms.items()})
        for learner in active:
            if learner.epoch_is_over():
                self._end_epoch(learner)

    def _end_epoch(self, learner: ExpertLearner) -> None:
        """Score a learner on its held-out rows, and note the score beside the training loss of the epoch."""
        learner.head.eval()
        validator = self.validators.get(learner.index)
        score = 0.0 if validator is None else validator(learner.head, learner.index)
        loss = learner.progress.loss
        learner.end_epoch(score)
        name, epoch = learner.name, learner.progress.epoch
        self.log.note(self.round, {f"validation/{name}": score, f"epoch_loss/{name}": loss, f"epoch/{name}": epoch})

    def _accumulate(self, active: Sequence[ExpertLearner]) -> dict[str, float]:
        """Run one batch of every active expert forward and backward; returns the mean loss of each."""
        positions: list[int] = []
        units: dict[int, int] = {}
        shares: dict[int, float] = {}  # of an epoch's examples that are in the batch
        for learner in active:
            learner.head.train()
            batch = learner.next_batch()
            units[learner.index] = units_of(self.examples, batch)
            shares[learner.index] = len(batch) / len(learner.examples)
            positions += batch
        totals: dict[int, Tensor | float] = dict.fromkeys(units, 0.0)
        if self.router is not None:
            self.router.begin(len(positions))
        packing = self.options.packing and self.base.kind == "decoder" and self.router is None
        for rows in plan_micro_batches(self.examples, positions, budget=self.options.tokens_per_batch, packing=packing):
            means, extra = self._losses(rows, units)
            total = torch.stack([self.learners[e].weigh(loss) for e, loss in means.items()]).sum() + extra
            total.mul(self.scale.value).backward()  # type: ignore[no-untyped-call]
            for expert, loss in means.items():
                totals[expert] = totals[expert] + loss.detach()
        losses = {expert: float(total) for expert, total in totals.items()}
        for expert, share in shares.items():
            self.learners[expert].progress.loss += share * losses[expert]
        self.progress.advance(len(positions), f"loss {sum(losses.values()) / len(losses):.4f}")
        return {self.learners[expert].name: mean for expert, mean in losses.items()}

    def _losses(self, rows: Rows, units: Mapping[int, int]) -> tuple[dict[int, Tensor], Tensor | float]:
        """Return each present expert's share of its mean loss, and the router's, from a mixed micro-batch."""
        layout = Layout.of(self.examples, rows)
        batch = layout.batch(self.base)
        ids = torch.tensor(layout.experts, device=self.base.device)
        dropout: Dropout = float(self._dropout[0]) if self._same_dropout else self._dropout[ids]
        extra: Tensor | float = 0.0
        gate: Gate = RowGate(ids)
        states, depth = None, self.cache.depth
        if self.router is not None:
            gate, extra, states, depth = self.router.gate(batch, ids, layout.examples)
        elif depth:
            states = layout.together(self.cache.fetch(layout.positions, layout.longest), batch.mask.shape[1])
        hidden, mask = last_states(self.base, layout, batch, gate, states=states, depth=depth, dropout=dropout)
        losses = {}
        for expert, expert_rows in rows_of([example.expert for example in layout.examples]).items():
            row_index = torch.tensor(expert_rows, device=hidden.device)
            longest = layout.longest_read(self.base, expert_rows)
            targets = [layout.examples[i].target for i in expert_rows]
            head = self.learners[expert].head
            losses[expert] = (
                head.loss(hidden[row_index, :longest], mask[row_index, :longest], targets).sum() / units[expert]
            )
        return losses, extra

    def _check(self, losses: Mapping[str, float], norms: Mapping[str, float]) -> None:
        """Stop on a loss that is no number; with fp16, an overflow only lowers the loss scale."""
        bad = [name for name, loss in losses.items() if not math.isfinite(loss)]
        overflow = [name for name, norm in norms.items() if not math.isfinite(norm)]
        if not bad and overflow and self.scale.lower():
            return
        if bad or overflow:
            name = (bad or overflow)[0]
            saved = self.checkpoint is not None and self.checkpoint.is_file()
            checkpoint_note = (
                f"the last good checkpoint, {self.checkpoint}, is kept" if saved else "there is no checkpoint yet"
            )
            raise TrainingError(
                f"task {name!r}: loss {losses[name]}, gradient norm {norms[name]} at step {self.round + 1}; "
                f"{checkpoint_note}; lower experts.learning_rate, task.{name}.hyper.learning_rate or "
                "joint.learning_rate in a new run, or look for broken rows"
            )

    def _save(self) -> None:
        """Write everything that the rest of the run depends on into one safetensors file, if there is to be one."""
        if self.checkpoint is None:
            return
        tensors = {"rng": torch.get_rng_state()}
        if self.base.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.base.device)
        progress = {}
        for learner in self.learners:
            progress[learner.name], parts = learner.state()
            tensors.update(parts)
        if self.router is not None:
            tensors.update({f"router/{name}": tensor for name, tensor in self.router.state().items()})
        state = {"round": self.round, "scale": self.scale.value, "progress": progress}
        write_tensors(self.checkpoint, tensors, metadata={"state": json.dumps(state)})
        self.log.saved()

    def _load(self, path: Path) -> None:
        from safetensors import safe_open

        tensors = read_tensors(path)
        with safe_open(path, framework="pt") as handle:
            state: dict[str, Any] = json.loads(handle.metadata()["state"])
        names = [learner.name for learner in self.learners]
        if sorted(state["progress"]) != sorted(names):
            raise LibraryError(
                f"checkpoint {path} is of the experts {', '.join(state['progress'])}, not {', '.join(names)}; "
                "resume with the same configuration, or remove the file to begin again"
            )
        self.round, self.scale.value = state["round"], state["scale"]
        for learner in self.learners:
            learner.restore(state["progress"][learner.name], tensors)
        if self.router is not None:
            router_tensors = {
                name.removeprefix("router/"): t for name, t in tensors.items() if name.startswith("router/")
            }
            self.router.restore(router_tensors)
        torch.set_rng_state(tensors["rng"])
        if "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"], self.base.device)
