"""The passes over the bases: rows in chunks, the trunk once, then the experts that are chosen, in the same pass.

Letters: B batch, S positions, D width, K experts per row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dynamorouter.errors import ConfigError, LibraryError, one_of
from dynamorouter.inference.decode import decode
from dynamorouter.inference.generation.decoding import Prefill, read_prompts
from dynamorouter.inference.policy import ABSTAINED, ROUTED, Assignment, Candidate, Mixture, RoutePolicy
from dynamorouter.inference.writing import Gates, GenerationBatch, stream_row, target_losses, text_answer, write_rows
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.gate import Gate
from dynamorouter.model.heads.base import EncoderHead
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.lora.fusion import Fusion
from dynamorouter.model.lora.gates import FusionGate, RowGate
from dynamorouter.model.lora.mount import Mounted, mount
from dynamorouter.model.text.batching import token_batches
from dynamorouter.model.text.prompts import prompt_windows
from dynamorouter.model.text.tokenize import Batch, TextPair, Window
from dynamorouter.routing.base import Route, Router, RouterInput
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.record import Record


@dataclass(slots=True)
class Chunk:
    """Rows that go through the bases together.

    Attributes:
        rows: texts and pairs.
        windows: of each row, on the router's base; the first of each is what the router reads.
        batch: the first windows, padded.
        states: the trunk's hidden states by layer, ``{layer: (B, S, D)}``; empty where no router reads any.
        depth: how deep the trunk was run.
        reading: the same with keys and values, on a base that writes, for experts to go on from.
    """

    rows: list[TextPair]
    windows: list[list[Window]]
    batch: Batch
    states: Mapping[int, Tensor] = field(default_factory=dict)
    depth: int = 0
    reading: Prefill | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def router_input(self) -> RouterInput:
        """Return what a router reads: hidden states and, for lexical baselines, the texts."""
        return RouterInput(states=self.states, mask=self.batch.mask, texts=self.rows)


class Engine:
    """Experts placed in the banks of their bases, the router, and the passes that answer rows through them.

    Args:
        bases: by name; the experts are mounted on them.
        experts: in the order of their indices.
        router: chooses among ``classes``; ``None`` where the task of every row will be named.
        classes: names of the experts that the router was fitted on, by its own index.
        router_base: name of the base whose trunk the router reads.
        budget: most tokens in a pass, padding included.

    Raises:
        LibraryError: an expert sits on a base, or a fusion mixes an expert, that is not there.

    Attributes:
        mounted: its experts on each base, by name; it answers as long as they are at work.
    """

    def __init__(
        self,
        bases: Mapping[str, Base],
        experts: Sequence[Expert],
        router: Router | None = None,
        *,
        classes: Sequence[str] = (),
        router_base: str,
        budget: int,
    ) -> None:
        self.bases = bases
        self.experts = experts
        self.router_base = router_base
        self.budget = budget
        self.mounted: dict[str, Mounted] = {}
        for name, base in self.bases.items():
            experts_here = [expert for expert in self.experts if expert.base == name]
            self.mounted[name] = mount(base, experts_here, share=True)
        for expert in self.experts:
            if expert.base not in self.bases:
                raise LibraryError(
                    f"expert {expert.name!r} sits on base {expert.base!r}, which the system has not; "
                    f"it has: {one_of(self.bases)}"
                )
            expert.head.to(self.bases[expert.base].device).eval()
        self._slots = [self.mounted[expert.base].slots[expert.name] for expert in self.experts]
        self._heads = [expert.answering_head for expert in self.experts]
        self._depths = [expert.lora.trunk_depth for expert in self.experts]
        self._sources: dict[int, Tensor] = {}
        for index, expert in enumerate(self.experts):
            if expert.fusion is not None:
                self._place_fusion(index, expert, expert.fusion)
        self.max_tokens = max((expert.task.max_tokens for expert in self.experts), default=128)
        home = [e.task.generation.max_new_tokens for e in self.experts if e.base == router_base and e.is_generative]
        if home and self.bases[router_base].kind == "decoder":  # it has to hold the text beside the prompt
            self.max_tokens = max(1, min(self.max_tokens, self.bases[router_base].positions - max(home)))
        self.stride = max((expert.task.stride for expert in self.experts), default=32)
        self.use_router(router, classes)

    def use_router(self, router: Router | None, classes: Sequence[str]) -> None:
        """Route by another router from now on; ``classes`` are the experts that it was fitted on, by its own index."""
        self.router = None if router is None else router.to(self.bases[self.router_base].device)
        candidates = tuple(
            Candidate(e.name, e.task.name, e.task.columns.pair is not None, e.is_generative) for e in self.experts
        )
        if router is None:
            self.policy = RoutePolicy(candidates, tuple(classes))
        else:
            self.policy = RoutePolicy(
                candidates,
                tuple(classes),
                abstain_below=router.abstain_below,
                respects_pairs=router.respects_pairs,
            )

    def close(self) -> None:
        """Take the experts off their bases; what they covered comes back."""
        for mounted in self.mounted.values():
            mounted.close()

    def _place_fusion(self, index: int, expert: Expert, fusion: Fusion) -> None:
        """Find a fusion's sources; its rows leave the trunk where the first of them does."""
        place = {other.name: i for i, other in enumerate(self.experts) if other.base == expert.base}
        missing = [name for name in fusion.sources if name not in place]
        if missing:
            raise LibraryError(
                f"expert {expert.name!r} mixes {one_of(fusion.sources)}, but base {expert.base!r} has no expert "
                f"{one_of(map(repr, missing))} in this system; put back what is missing, or remove {expert.name!r}"
            )
        own = [place[name] for name in fusion.sources]
        device = self.bases[expert.base].device
        fusion.to(device).head.eval()
        self._sources[index] = torch.tensor([self._slots[i] for i in own], device=device)
        self._depths[index] = min(self.experts[i].lora.trunk_depth for i in own)

    def chunks(self, rows: Sequence[TextPair], *, routed: bool = True) -> Iterator[tuple[list[int], Chunk]]:
        """Cut rows into batches of similar length under the budget, with what the router reads if they are ``routed``.

        Yields:
            The positions of a batch's rows among all, and the batch.
        """
        base = self.bases[self.router_base]
        layers = self.router.layers if routed and self.router is not None else ()
        windows: list[list[Window]] = [[] for _ in rows]
        for window in prompt_windows(base, rows, max_tokens=self.max_tokens, stride=self.stride):
            windows[window.row].append(window)
        writing = any(e.base == self.router_base and e.is_generative for e in self.experts)
        for group in token_batches([len(own[0]) for own in windows], budget=self.budget):
            batch = base.encoder.collate([windows[i][0].encoding for i in group], base.device)
            chunk = Chunk([rows[i] for i in group], [windows[i] for i in group], batch)
            if layers and writing:
                chunk.depth = max(layers)
                ids = [windows[i][0].encoding.ids for i in group]
                chunk.reading = read_prompts(base, ids, chunk.depth, keep=layers)
                chunk.states = chunk.reading.states
            elif layers:
                chunk.depth = max(layers)
                with torch.inference_mode():
                    chunk.states = base.forward_to(batch, chunk.depth, keep=layers)
            yield group, chunk

    def answers(
        self,
        rows: Sequence[TextPair],
        named: Sequence[int],
        *,
        generation: Mapping[str, Any] | None = None,
        generative_only: bool = False,
    ) -> Iterator[tuple[list[int], Assignment, list[Answer | None]]]:
        """Route and answer rows, in batches of similar length.

        Args:
            rows: texts and pairs.
            named: the expert of each row whose task is named, ``ROUTED`` for the others.
            generation: settings of generation that differ from the tasks' own.
            generative_only: route to experts that generate alone.

        Yields:
            The positions of a batch's rows among all, their experts, and their answers.

        Raises:
            ConfigError: rows must be routed and there is no router.
        """
        routed = self.policy.needs_route(named, generative_only=generative_only)
        for positions, chunk in self.chunks(rows, routed=routed):
            assignment = self.assign(chunk, [named[i] for i in positions], generative_only=generative_only)
            yield positions, assignment, self.answer(chunk, assignment, generation=generation)

    def assign(self, chunk: Chunk, named: Sequence[int] | None = None, *, generative_only: bool = False) -> Assignment:
        """Assign experts to the rows of a chunk.

        Args:
            chunk: rows, with what the router reads.
            named: the expert of each row whose task is named, ``ROUTED`` for the others; by default all are routed.
            generative_only: route to experts that generate alone.

        Raises:
            ConfigError: rows must be routed and there is no router.
        """
        named = [ROUTED] * len(chunk) if named is None else named
        routed = self.policy.needs_route(named, generative_only=generative_only)
        return self.policy.assign(self.route(chunk, generative_only=generative_only) if routed else None, named)

    @torch.inference_mode()
    def route(self, chunk: Chunk, *, generative_only: bool = False, labels: Sequence[int] | None = None) -> Route:
        """Route a chunk over the system's experts.

        Args:
            chunk: rows, with what the router reads.
            generative_only: route to experts that generate alone.
            labels: the right expert of each row, which the oracle alone is told.

        Raises:
            ConfigError: there is no router.
        """
        if self.router is None:
            raise ConfigError(
                "the system has no router yet; name the task of each row (--task NAME), "
                "or fit one with 'dynamorouter fit router'"
            )
        if labels is None:
            route = self.router.route(chunk.router_input())
        else:
            classes = torch.tensor([self.policy.class_of(expert) for expert in labels])
            route = self.router.route_labelled(chunk.router_input(), classes)
        return self.policy.narrow(route, chunk.rows, generative_only=generative_only)

    @torch.inference_mode()
    def answer(
        self,
        chunk: Chunk,
        assignment: Assignment,
        *,
        generation: Mapping[str, Any] | None = None,
        skip_generation: Collection[int] = (),
    ) -> list[Answer | None]:
        """Answer each row of a chunk with the head of its expert, through that expert or what is mixed for the row.

        Rows whose expert has a fusion keep to that, which is a mixture already.

        Args:
            chunk: rows, with the trunk's states where they were read.
            assignment: the expert of each row, and the mixture.
            generation: settings of generation that differ from the tasks' own.
            skip_generation: rows whose answer is an empty text where their expert generates.

        Returns:
            An answer per row; ``None`` where nobody answers it.
        """
        experts, mixture = assignment.experts, assignment.mixture
        parts: list[list[Any]] = [[] for _ in chunk.rows]
        written: dict[int, Answer] = {}
        for name, base in self.bases.items():
            mine = [i for i, e in enumerate(experts) if e >= 0 and self.experts[e].base == name]
            texts = [i for i in mine if self.experts[experts[i]].is_generative]
            mine = [i for i in mine if not self.experts[experts[i]].is_generative]
            written.update({i: text_answer("") for i in texts if i in skip_generation})
            wanted = self._wanted(
                chunk, experts, [i for i in texts if i not in skip_generation], name, mixture, generation
            )
            if mine or wanted.rows:
                self.mounted[name].check()
            if wanted.rows:
                home = name == self.router_base
                read = {i: chunk.windows[i][0].encoding.ids for i in wanted.rows} if home else {}
                written.update(write_rows(wanted, chunk.reading if home else None, read, self.budget))
            first, later = self._plan(chunk, experts, mine, name, mixture)
            for rows in self._alike(first, experts):
                self._finish(chunk, experts, rows, mixture, parts)
            self._full(base, later, experts, mixture, parts, chunk)
            if mine or wanted.rows:  # nobody has put others there meanwhile
                self.mounted[name].check()
        return [
            self._reader(e).merge(part, row) if part else written.get(i)
            for i, (e, part, row) in enumerate(zip(experts, parts, chunk.rows, strict=True))
        ]

    def stream(self, row: TextPair, named: int, *, generation: Mapping[str, Any] | None = None) -> Iterator[str]:
        """Generate the answer to one row and yield it piece by piece; nothing where the policy abstains.

        Args:
            row: text and pair.
            named: its expert, one that generates, or ``ROUTED``.
            generation: settings of generation that differ from the task's own.
        """
        ((_, chunk),) = self.chunks([row], routed=self.policy.needs_route([named], generative_only=True))
        assignment = self.assign(chunk, [named], generative_only=True)
        (expert,) = assignment.experts
        if expert == ABSTAINED:
            return
        name = self.experts[expert].base
        wanted = self._wanted(chunk, [expert], [0], name, assignment.mixture, generation)
        home = name == self.router_base
        self.mounted[name].check()
        for piece in stream_row(wanted, chunk.reading if home else None, chunk.windows[0][0].encoding.ids):
            self.mounted[name].check()
            yield piece

    def losses(self, records: Sequence[Record], assignment: Assignment) -> list[tuple[float, int] | None]:
        """Return the loss of each record's target text under its expert in nats, and the text's number of tokens.

        ``None`` for rows that nobody answers, or whose expert does not generate.
        """
        experts, mixture = assignment.experts, assignment.mixture
        found: list[tuple[float, int] | None] = [None] * len(records)
        for name, base in self.bases.items():
            generative = [e.base == name and e.is_generative for e in self.experts]
            mine = [i for i, expert in enumerate(experts) if expert >= 0 and generative[expert]]
            if mine:
                self.mounted[name].check()
                own = {i: self.experts[experts[i]] for i in mine}
                gates = self._gates(experts, mixture, base)
                costs = target_losses(base, {i: records[i] for i in mine}, own, gates, budget=self.budget)
                for i, cost in costs.items():
                    found[i] = cost
        return found

    def _wanted(
        self,
        chunk: Chunk,
        experts: Sequence[int],
        rows: Sequence[int],
        name: str,
        mixture: Mixture | None,
        generation: Mapping[str, Any] | None,
    ) -> GenerationBatch:
        base = self.bases[name]
        return GenerationBatch(
            base,
            {i: chunk.rows[i] for i in rows},
            {i: self.experts[experts[i]] for i in rows},
            {i: self._begins(i, experts, mixture) for i in rows},
            self._gates(experts, mixture, base),
            generation,
        )

    def _begins(self, row: int, experts: Sequence[int], mixture: Mixture | None) -> int:
        """Return the block where a row's experts begin: the lowest of those that are mixed for it on its base."""
        own = experts[row]
        if mixture is None or own in self._sources:
            return self._depths[own]
        pairs = zip(mixture[0][row].tolist(), mixture[1][row].tolist(), strict=True)
        base = self.experts[own].base
        mixed = [self._depths[e] for e, weight in pairs if weight > 0 and self.experts[e].base == base]
        return min(mixed, default=self._depths[own])

    def _gates(self, experts: Sequence[int], mixture: Mixture | None, base: Base) -> Gates:
        return lambda rows: self._gate(rows, experts, mixture, base.device)

    def _reader(self, expert: int) -> EncoderHead:
        head = self._heads[expert]
        assert isinstance(head, EncoderHead)
        return head

    def _plan(
        self, chunk: Chunk, experts: Sequence[int], mine: Sequence[int], name: str, mixture: Mixture | None
    ) -> tuple[list[int], list[tuple[int, Window]]]:
        """Split a base's rows into those that go on from the trunk and windows that take a whole pass."""
        if name != self.router_base or self.bases[name].kind != "encoder":  # there a router reads prompts
            base = self.bases[name]
            found = base.encoder.windows([chunk.rows[i] for i in mine], max_tokens=self.max_tokens, stride=self.stride)
            return [], [(mine[window.row], window) for window in found]
        on = [i for i in mine if chunk.depth and self._begins(i, experts, mixture) >= chunk.depth]
        whole = set(mine) - set(on)
        later = [(i, window) for i in mine for window in chunk.windows[i] if window.part or i in whole]
        return on, later

    def _alike(self, rows: Sequence[int], experts: Sequence[int]) -> list[list[int]]:
        """Split rows into those that can share a gate: all plain experts together, and each fusion for itself."""
        groups: dict[int, list[int]] = {}
        for i in rows:
            groups.setdefault(experts[i] if experts[i] in self._sources else -1, []).append(i)
        return list(groups.values())

    def _finish(
        self,
        chunk: Chunk,
        experts: Sequence[int],
        rows: Sequence[int],
        mixture: Mixture | None,
        parts: list[list[Any]],
    ) -> None:
        """Go on from the trunk's states through the experts' layers, in the pass that the router read."""
        base = self.bases[self.router_base]
        hidden, mask = chunk.states[chunk.depth], chunk.batch.mask
        if len(rows) < len(chunk):
            at = torch.tensor(rows, device=base.device)
            hidden, mask = hidden[at], mask[at]
        gate = self._gate(rows, experts, mixture, base.device)
        hidden = base.forward_from(hidden, mask, gate, depth=chunk.depth)
        self._decode(hidden, mask, [(i, chunk.windows[i][0]) for i in rows], experts, parts, chunk)

    def _full(
        self,
        base: Base,
        windows: Sequence[tuple[int, Window]],
        experts: Sequence[int],
        mixture: Mixture | None,
        parts: list[list[Any]],
        chunk: Chunk,
    ) -> None:
        """Run whole passes: other bases, experts below the trunk, further windows of long rows."""
        for rows in map(set, self._alike([row for row, _ in windows], experts)):
            mine = [item for item in windows if item[0] in rows]
            for group in token_batches([len(window) for _, window in mine], budget=self.budget):
                chosen = sorted((mine[i] for i in group), key=lambda item: (item[0], item[1].part))
                batch = base.encoder.collate([window.encoding for _, window in chosen], base.device)
                gate = self._gate([row for row, _ in chosen], experts, mixture, base.device)
                self._decode(base.forward(batch, gate), batch.mask, chosen, experts, parts, chunk)

    def _gate(self, rows: Sequence[int], experts: Sequence[int], mixture: Mixture | None, device: torch.device) -> Gate:
        """Return the gate of rows that ``_alike`` put together."""
        fusion = self.experts[experts[rows[0]]].fusion
        if fusion is not None:
            return FusionGate(fusion.layers, self._sources[experts[rows[0]]], rows=len(rows))
        if mixture is None:
            return RowGate(torch.tensor([self._slots[experts[i]] for i in rows], device=device))
        chosen, weights = mixture[0][list(rows)], mixture[1][list(rows)]
        slots = torch.tensor(self._slots, device=chosen.device)[chosen]
        elsewhere = torch.tensor(
            [
                [self.experts[e].base != self.experts[experts[i]].base for e in row]
                for i, row in zip(rows, chosen.tolist(), strict=True)
            ],
            device=chosen.device,
        )  # experts on another base cannot take part in this row's mixture
        return RowGate(slots.masked_fill(elsewhere, -1), weights)

    def _decode(
        self,
        hidden: Tensor,
        mask: Tensor,
        windows: Sequence[tuple[int, Window]],
        experts: Sequence[int],
        parts: list[list[Any]],
        chunk: Chunk,
    ) -> None:
        rows = [row for row, _ in windows]
        found = decode(
            hidden,
            mask,
            [window for _, window in windows],
            [chunk.rows[row] for row in rows],
            [experts[row] for row in rows],
            {expert: self._reader(expert) for expert in {experts[row] for row in rows}},
        )
        for (row, window), part in zip(windows, found, strict=True):
            parts[row].extend([None] * (window.part + 1 - len(parts[row])))
            parts[row][window.part] = part
