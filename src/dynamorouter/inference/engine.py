"""The passes over the bases: rows in chunks, the trunk once, then the experts that are chosen, in the same pass.

Letters: B batch, S positions, D width, K experts per row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch

from dynamorouter.errors import ConfigError, LibraryError, one_of
from dynamorouter.inference.chunk import Chunk
from dynamorouter.inference.decode import RowDecoder
from dynamorouter.inference.gating import ExpertGates
from dynamorouter.inference.generation.decoding import read_prompts
from dynamorouter.inference.policy import ABSTAINED, BARE, ROUTED, Assignment, Candidate, RoutePolicy
from dynamorouter.inference.writing import GenerationBatch, bare_task, generate_answers, stream_answer, text_answer
from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.base import EncoderHead
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.lora.mount import Mounted, mount
from dynamorouter.model.text.batching import token_batches
from dynamorouter.model.text.examples import TrainingExample, make_examples
from dynamorouter.model.text.passes import ExamplePasses
from dynamorouter.model.text.prompts import prompt_windows
from dynamorouter.model.text.tokenize import TextPair, Window
from dynamorouter.routing.base import Route, Router
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.record import Record


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
        LibraryError: an expert has a base, or a fusion mixes an expert, that is not there.

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
                    f"expert {expert.name!r} has base model {expert.base!r}, which the system lacks; "
                    f"it has: {one_of(self.bases)}"
                )
            expert.head.to(self.bases[expert.base].device).eval()
        slots = [self.mounted[expert.base].slots[expert.name] for expert in self.experts]
        self.gates = ExpertGates(bases, experts, slots)
        self._heads = [
            expert.answering_head if isinstance(expert.answering_head, EncoderHead) else None for expert in experts
        ]
        self.max_tokens = max((expert.task.max_tokens for expert in self.experts), default=128)
        home = [e.task.generation.max_new_tokens for e in self.experts if e.base == router_base and e.is_generative]
        if home and self.bases[router_base].kind == "decoder":  # it has to hold the text beside the prompt
            self.max_tokens = max(1, min(self.max_tokens, self.bases[router_base].positions - max(home)))
        self.stride = max((expert.task.stride for expert in self.experts), default=32)
        writing = [name for name in (router_base, *bases) if bases[name].language_head is not None]
        self.bare_base = writing[0] if writing else None
        self.use_router(router, classes)

    def use_router(self, router: Router | None, classes: Sequence[str]) -> None:
        """Route by another router from now on; ``classes`` are the experts that it was fitted on, by its own index."""
        self.router = None if router is None else router.to(self.bases[self.router_base].device)
        self.policy = RoutePolicy(
            tuple(
                Candidate(e.name, e.task.name, e.task.columns.pair is not None, e.is_generative) for e in self.experts
            ),
            tuple(classes),
            abstain_below=0.0 if router is None else router.abstain_below,
            respects_pairs=True if router is None else router.respects_pairs,
            base_writes=self.bare_base is not None,
        )

    def close(self) -> None:
        """Take the experts off their bases; what they covered comes back."""
        for mounted in self.mounted.values():
            mounted.close()

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
        generates = any(e.base == self.router_base and e.is_generative for e in self.experts)
        for group in token_batches([len(row_windows[0]) for row_windows in windows], budget=self.budget):
            batch = base.encoder.collate([windows[i][0].encoding for i in group], base.device)
            chunk = Chunk([rows[i] for i in group], [windows[i] for i in group], batch)
            if layers and generates:
                chunk.depth = max(layers)
                ids = [windows[i][0].encoding.ids for i in group]
                chunk.prefill = read_prompts(base, ids, chunk.depth, keep=layers)
                chunk.states = chunk.prefill.states
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
        policy: RoutePolicy | None = None,
        generation: Mapping[str, Any] | None = None,
        generative_only: bool = False,
    ) -> Iterator[tuple[list[int], Assignment, list[Answer | None]]]:
        """Route and answer rows, in batches of similar length.

        Args:
            rows: texts and pairs.
            named: the expert of each row whose task is named, ``ROUTED`` for the others.
            policy: in place of the system's own.
            generation: settings of generation that differ from the tasks' own.
            generative_only: route to experts that generate alone.

        Yields:
            The positions of a batch's rows among all, their experts, and their answers.

        Raises:
            ConfigError: rows must be routed and there is no router.
        """
        routed = self.policy.needs_route(named, generative_only=generative_only)
        for positions, chunk in self.chunks(rows, routed=routed):
            chunk_named = [named[i] for i in positions]
            assignment = self.assign(chunk, chunk_named, policy=policy, generative_only=generative_only)
            yield positions, assignment, self.answer(chunk, assignment, generation=generation)

    def assign(
        self,
        chunk: Chunk,
        named: Sequence[int] | None = None,
        *,
        policy: RoutePolicy | None = None,
        generative_only: bool = False,
    ) -> Assignment:
        """Assign experts to the rows of a chunk.

        Args:
            chunk: rows, with what the router reads.
            named: the expert of each row whose task is named, ``ROUTED`` for the others; by default all are routed.
            policy: in place of the system's own.
            generative_only: route to experts that generate alone.

        Raises:
            ConfigError: rows must be routed and there is no router.
        """
        named = [ROUTED] * len(chunk) if named is None else named
        policy = policy or self.policy
        if not policy.needs_route(named, generative_only=generative_only):
            return policy.assign(None, named)
        return policy.assign(self.route(chunk, policy=policy, generative_only=generative_only), named)

    @torch.inference_mode()
    def route(
        self,
        chunk: Chunk,
        *,
        policy: RoutePolicy | None = None,
        generative_only: bool = False,
        labels: Sequence[int] | None = None,
    ) -> Route:
        """Route a chunk over the system's experts.

        Args:
            chunk: rows, with what the router reads.
            policy: in place of the system's own.
            generative_only: route to experts that generate alone.
            labels: the right expert of each row, which the oracle alone is told.

        Raises:
            ConfigError: there is no router.
        """
        if self.router is None:
            raise ConfigError(
                "the system has no router yet; name the task of each row (--task NAME), or fit one with "
                "'dynamorouter fit router' (System.fit_router)"
                if self.experts
                else "the system has no expert yet; add some with System.add_expert, 'dynamorouter import' or "
                "'dynamorouter expert train'"
            )
        if labels is None:
            route = self.router.route(chunk.router_input())
        else:
            classes = torch.tensor([self.policy.class_of(expert) for expert in labels])
            route = self.router.route_labelled(chunk.router_input(), classes)
        return (policy or self.policy).narrow(route, chunk.rows, generative_only=generative_only)

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
        decoder = RowDecoder(
            chunk.rows, [self._heads[expert] if expert >= 0 else None for expert in assignment.experts]
        )
        texts: dict[int, Answer] = {}
        for name, (reading, generating) in self._rows_by_base(assignment).items():
            texts.update({row: text_answer("") for row in generating if row in skip_generation})
            generating = [row for row in generating if row not in skip_generation]
            if generating:
                self.mounted[name].check()
                texts.update(
                    generate_answers(self._generation(chunk, generating, assignment, generation), budget=self.budget)
                )
            if reading:
                self.mounted[name].check()
                self._read(chunk, reading, assignment, decoder)
            if reading or generating:  # nobody has put others there meanwhile
                self.mounted[name].check()
        return [texts.get(row, answer) for row, answer in enumerate(decoder.answers())]

    def stream(
        self,
        row: TextPair,
        named: int,
        *,
        policy: RoutePolicy | None = None,
        generation: Mapping[str, Any] | None = None,
    ) -> Iterator[str]:
        """Generate the answer to one row and yield it piece by piece; nothing where the policy abstains.

        Args:
            row: text and pair.
            named: its expert, one that generates, ``BARE`` or ``ROUTED``.
            policy: in place of the system's own.
            generation: settings of generation that differ from the task's own.
        """
        ((_, chunk),) = self.chunks([row], routed=self.policy.needs_route([named], generative_only=True))
        assignment = self.assign(chunk, [named], policy=policy, generative_only=True)
        (expert,) = assignment.experts
        if expert == ABSTAINED:
            return
        name = self._base_name(expert)
        self.mounted[name].check()
        for text in stream_answer(self._generation(chunk, [0], assignment, generation)):
            self.mounted[name].check()
            yield text

    @torch.inference_mode()
    def losses(self, records: Sequence[Record], assignment: Assignment) -> list[tuple[float, int] | None]:
        """Return the loss of each record's target text under its expert in nats, and the text's number of tokens.

        ``None`` for rows that nobody answers, or whose expert does not generate.
        """
        losses: list[tuple[float, int] | None] = [None] * len(records)
        for name, (_, rows) in self._rows_by_base(assignment).items():
            if rows:
                self.mounted[name].check()
                for row, loss in self._target_losses({row: records[row] for row in rows}, assignment).items():
                    losses[row] = loss
        return losses

    def _target_losses(self, records: Mapping[int, Record], assignment: Assignment) -> dict[int, tuple[float, int]]:
        """Return the same for records of one base, whose experts all generate, by row."""
        rows = sorted(records, key=lambda row: assignment.experts[row])
        name = self.experts[assignment.experts[rows[0]]].base
        examples: list[TrainingExample] = []
        for index, group in groupby(rows, key=lambda row: assignment.experts[row]):
            expert = self.experts[index]
            expert_records = [records[row] for row in group]
            examples += make_examples(self.bases[name], expert.head, expert.task, expert_records, expert=index)
        passes = ExamplePasses(self.bases[name], examples, budget=self.budget)
        head = self.experts[assignment.experts[rows[0]]].head  # those that generate on one base compute losses alike
        losses = passes.losses(
            head, lambda positions: self.gates.gate([rows[position] for position in positions], assignment)
        )
        return dict(zip(rows, losses, strict=True))

    def _rows_by_base(self, assignment: Assignment) -> dict[str, tuple[list[int], list[int]]]:
        """Return for each base the rows that its experts read, and those to which they generate an answer."""
        by_base: dict[str, tuple[list[int], list[int]]] = {name: ([], []) for name in self.bases}
        for row, index in enumerate(assignment.experts):
            if index != ABSTAINED:
                generates = index == BARE or self.experts[index].is_generative
                by_base[self._base_name(index)][generates].append(row)
        return by_base

    def _base_name(self, expert: int) -> str:
        """Return the name of an expert's base, or of that which writes without experts."""
        if expert == BARE:
            assert self.bare_base is not None  # the policy refuses to name it otherwise
            return self.bare_base
        return self.experts[expert].base

    def _generation(
        self, chunk: Chunk, rows: Sequence[int], assignment: Assignment, options: Mapping[str, Any] | None
    ) -> GenerationBatch:
        """Return what is to be generated for rows of one base."""
        answering = {row: assignment.experts[row] for row in rows}
        name = self._base_name(answering[rows[0]])
        bare = bare_task(self.bases[name]) if BARE in answering.values() else None
        tasks = {
            row: self.experts[index].task if bare is None or index != BARE else bare for row, index in answering.items()
        }
        prefill = chunk.prefill if name == self.router_base else None
        prefilled = {
            row: chunk.windows[row][0].encoding.ids
            for row in rows
            if prefill is not None and self.gates.begins(row, assignment) >= prefill.depth
        }
        return GenerationBatch(
            self.bases[name],
            {row: chunk.rows[row] for row in rows},
            tasks,
            self.gates.gates(assignment),
            options,
            prefill,
            prefilled,
        )

    def _read(self, chunk: Chunk, rows: Sequence[int], assignment: Assignment, decoder: RowDecoder) -> None:
        """Pass rows of one base through their experts, on from the trunk where the router has read them so far."""
        name = self.experts[assignment.experts[rows[0]]].base
        base = self.bases[name]
        if name == self.router_base and base.kind == "encoder":  # elsewhere a router reads prompts
            begun = [row for row in rows if chunk.depth and self.gates.begins(row, assignment) >= chunk.depth]
            anew = set(rows) - set(begun)
            windows = [(row, w) for row in rows for w in chunk.windows[row] if w.part or row in anew]
        else:
            begun = []
            texts = [chunk.rows[row] for row in rows]
            cut = base.encoder.windows(texts, max_tokens=self.max_tokens, stride=self.stride)
            windows = [(rows[window.row], window) for window in cut]
        for group in self.gates.alike(begun, assignment):
            hidden, mask = chunk.states[chunk.depth], chunk.batch.mask
            if len(group) < len(chunk):
                index = torch.tensor(group, device=base.device)
                hidden, mask = hidden[index], mask[index]
            hidden = base.forward_from(hidden, mask, self.gates.gate(group, assignment), depth=chunk.depth)
            decoder.add(hidden, mask, [(row, chunk.windows[row][0]) for row in group])
        for group in self.gates.alike([row for row, _ in windows], assignment):
            self._read_windows(base, [item for item in windows if item[0] in set(group)], assignment, decoder)

    def _read_windows(
        self, base: Base, windows: Sequence[tuple[int, Window]], assignment: Assignment, decoder: RowDecoder
    ) -> None:
        """Pass windows whose rows can share a gate through the whole base."""
        for group in token_batches([len(window) for _, window in windows], budget=self.budget):
            batch_windows = sorted((windows[i] for i in group), key=lambda item: (item[0], item[1].part))
            batch = base.encoder.collate([window.encoding for _, window in batch_windows], base.device)
            gate = self.gates.gate([row for row, _ in batch_windows], assignment)
            decoder.add(base.forward(batch, gate), batch.mask, batch_windows)
