"""A system: bases, a library of experts and a router, answering a mixed batch in a single pass.

    system = System.load("runs/quickstart/system")
    for prediction in system.predict(["A joy from start to finish."]):
        print(prediction.task, prediction.confidence, prediction.answer)

Letters: B batch, S positions, D width, E experts, K experts per row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynamorouter import __version__
from dynamorouter.data.text import MAX_CHARS, check_text
from dynamorouter.devices import pick_device, pick_dtype
from dynamorouter.errors import ConfigError, DataError, LibraryError, one_of, suggest
from dynamorouter.files import read_form, recover, write_json
from dynamorouter.library import Library, Skill
from dynamorouter.model.bank import FusionGate, Gate, RowGate
from dynamorouter.model.base import Base, BaseSpec
from dynamorouter.model.encode import Batch, TextPair, Window
from dynamorouter.model.expert import Expert, install_experts
from dynamorouter.model.fusion import Fusion
from dynamorouter.model.passes import decode, token_batches
from dynamorouter.prediction import Prediction
from dynamorouter.routing import store
from dynamorouter.routing.base import Route, Router, RouterInput
from dynamorouter.tasks.task import Answer

MANIFEST, EXPERTS, ROUTER = "system.json", "experts", "router"
FORMAT = 1
KEYS = ("bases", "router_base", "experts", "classes", "info")
Row = TextPair


@dataclass(slots=True)
class Chunk:
    """Rows that go through the bases together.

    Attributes:
        rows: texts and pairs.
        windows: of each row, on the router's base; the first of each is what the router reads.
        batch: the first windows, padded.
        states: the trunk's hidden states by layer, ``{layer: (B, S, D)}``; empty where no router reads any.
        depth: how deep the trunk was run.
    """

    rows: list[Row]
    windows: list[list[Window]]
    batch: Batch
    states: Mapping[int, Tensor] = field(default_factory=dict)
    depth: int = 0

    def __len__(self) -> int:
        return len(self.rows)


class System:
    """One frozen base (or several), many experts, and a router.

    Args:
        bases: by name.
        experts: in the order of their indices.
        router: chooses among ``classes``; ``None`` before one was fitted.
        router_base: name of the base that the router reads.
        classes: names of the experts that the router was fitted on, by its own index.
        info: further facts that are kept with the system: recipe, seed, hash of the settings.
        tokens_per_batch: most tokens in a pass, padding included.
        library: where the experts' folders are, if they are on disk.
    """

    def __init__(
        self,
        bases: Mapping[str, Base],
        experts: Sequence[Expert],
        router: Router | None,
        *,
        router_base: str,
        classes: Sequence[str] = (),
        info: Mapping[str, Any] | None = None,
        tokens_per_batch: int = 8192,
        library: Library | None = None,
    ) -> None:
        self.bases = dict(bases)
        self.experts = list(experts)
        self.router = router
        self.router_base = router_base
        self.classes = list(classes)
        self.info = dict(info or {})
        self.tokens_per_batch = tokens_per_batch
        self.library = library
        self._place()

    def refresh(self) -> None:
        """Take note of a router that was put in place of another."""
        place = {name: index for index, name in enumerate(self.names)}
        self._columns = [place.get(name, -1) for name in self.classes]
        if self.router is not None:
            self.router.to(self.bases[self.router_base].device)

    def _place(self) -> None:
        """Write the experts into the banks of their bases and note where each one is."""
        self.names = [expert.name for expert in self.experts]
        self._slots: list[int] = []
        for name, base in self.bases.items():
            own = [expert for expert in self.experts if expert.base == name]
            install_experts(base, own)
            for bank in base.banks.values():
                bank.requires_grad_(False)
        counts = dict.fromkeys(self.bases, 0)
        for expert in self.experts:
            if expert.base not in self.bases:
                raise LibraryError(
                    f"expert {expert.name!r} sits on base {expert.base!r}, which the system has not; "
                    f"it has: {one_of(self.bases)}"
                )
            self._slots.append(counts[expert.base])
            counts[expert.base] += 1
            expert.head.to(self.bases[expert.base].device).eval()
        self._heads = [expert.answering_head for expert in self.experts]
        self._depths = [expert.lora.trunk_depth for expert in self.experts]
        self._sources: dict[int, Tensor] = {}
        for index, expert in enumerate(self.experts):
            if expert.fusion is not None:
                self._place_fusion(index, expert, expert.fusion)
        self.max_tokens = max((expert.task.max_tokens for expert in self.experts), default=128)
        self.stride = max((expert.task.stride for expert in self.experts), default=32)
        self.refresh()

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

    # -- on disk ------------------------------------------------------------------------------------------------

    @staticmethod
    def load(folder: str | Path, *, device: str = "auto", precision: str = "fp32") -> System:
        """Load a saved system.

        Args:
            folder: what ``save`` wrote, such as ``runs/quickstart/system``.
            device: ``auto``, ``cpu`` or ``cuda``.
            precision: ``fp32``, ``bf16``, ``fp16`` or ``auto`` for the best that the device has.

        Raises:
            LibraryError: the folder is no system, or something in it is damaged or missing.
        """
        path = Path(folder)
        recover(path)
        if not (path / MANIFEST).is_file():
            raise LibraryError(
                f"{path} is no saved system: it has no {MANIFEST}; give the folder that 'dynamorouter run' wrote, "
                "such as runs/quickstart/system"
            )
        manifest = read_form(path / MANIFEST, format=FORMAT, keys=KEYS)
        place = pick_device(device)
        dtype = pick_dtype(precision, place)
        specs = {name: BaseSpec(name=name, **values) for name, values in manifest["bases"].items()}
        bases = {name: Base.load(spec, device=place, dtype=dtype) for name, spec in specs.items()}
        library = Library(path / EXPERTS)
        experts = [library.load(name, _base_of(library, name, bases)) for name in manifest["experts"]]
        router = store.load(path / ROUTER) if manifest["classes"] else None
        return System(
            bases,
            experts,
            router,
            router_base=manifest["router_base"],
            classes=manifest["classes"],
            info=manifest["info"],
            library=library,
        )

    def save(self, folder: str | Path, *, skills: Mapping[str, Skill] | None = None) -> Path:
        """Write the system: experts that are not there yet or have changed, the router, and last the manifest."""
        path = Path(folder)
        library = Library(path / EXPERTS)
        for expert in self.experts:
            skill = (skills or {}).get(expert.name)
            library.add(expert, self.bases[expert.base], skill=skill, replace=True)
        self.library = library
        self.save_router(path)
        return path

    def save_router(self, folder: str | Path) -> None:
        """Write the router and the manifest, leaving the experts' folders as they are."""
        path = Path(folder)
        if self.router is not None:
            store.save(self.router, path / ROUTER)
        specs = {
            name: {"path": base.spec.path, "fallback": base.spec.fallback, "revision": base.spec.revision}
            for name, base in self.bases.items()
        }
        write_json(
            path / MANIFEST,
            {
                "format": FORMAT,
                "version": __version__,
                "bases": specs,
                "router_base": self.router_base,
                "experts": self.names,
                "classes": self.classes if self.router is not None else [],
                "info": self.info,
            },
        )

    # -- use ----------------------------------------------------------------------------------------------------

    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str | None] | None = None,
        tasks: Sequence[str | None] | None = None,
    ) -> list[Prediction]:
        """Answer each text with the expert that the router chooses for it.

        Args:
            texts: single texts, first texts of pairs, or questions.
            pairs: second texts or contexts; ``None`` where a text stands alone.
            tasks: names of experts (or of their tasks) to use instead of routing; ``None`` routes the row.

        Raises:
            DataError: a text is empty, too long or holds control characters, or the lists differ in length.
            ConfigError: a task is unknown, or rows must be routed and no router was fitted.
        """
        rows = check_rows(texts, pairs)
        known = self._known(tasks, len(rows))
        predictions: list[Prediction | None] = [None] * len(rows)
        for positions, chunk in self.chunks(rows, read=any(k < 0 for k in known)):
            mine = [known[i] for i in positions]
            for position, prediction in zip(positions, self._predict(chunk, mine), strict=True):
                predictions[position] = prediction
        return [prediction for prediction in predictions if prediction is not None]

    def route(self, texts: Sequence[str], pairs: Sequence[str | None] | None = None) -> list[dict[str, float]]:
        """Return the probability of every expert for each text, without answering.

        Raises:
            DataError: a text cannot be used.
            ConfigError: no router was fitted.
        """
        rows = check_rows(texts, pairs)
        found: list[dict[str, float]] = [{}] * len(rows)
        for positions, chunk in self.chunks(rows):
            for position, row in zip(positions, self.route_chunk(chunk).probabilities.tolist(), strict=True):
                found[position] = dict(zip(self.names, row, strict=True))
        return found

    def index(self, name: str) -> int:
        """Return the index of an expert by its own name or its task's.

        Raises:
            ConfigError: there is none.
        """
        tasks = [expert.task.name for expert in self.experts]
        for names in (self.names, tasks):
            if name in names:
                return names.index(name)
        raise ConfigError(
            f"the system has no expert for task {name!r}{suggest(name, self.names)}; it has: {one_of(self.names)}"
        )

    # -- one chunk of rows --------------------------------------------------------------------------------------

    def chunks(self, rows: Sequence[Row], *, read: bool = True) -> Iterator[tuple[list[int], Chunk]]:
        """Cut rows into batches of similar length under the token budget, with the trunk's states if ``read``."""
        base = self.bases[self.router_base]
        windows: list[list[Window]] = [[] for _ in rows]
        for window in base.encoder.windows(rows, max_tokens=self.max_tokens, stride=self.stride):
            windows[window.row].append(window)
        for group in token_batches([len(own[0]) for own in windows], budget=self.tokens_per_batch):
            batch = base.encoder.collate([windows[i][0].encoding for i in group], base.device)
            chunk = Chunk([rows[i] for i in group], [windows[i] for i in group], batch)
            if read and self.router is not None and self.router.layers:
                chunk.depth = max(self.router.layers)
                with torch.inference_mode():
                    chunk.states = base.trunk(batch, chunk.depth, keep=self.router.layers)
            yield group, chunk

    def router_input(self, chunk: Chunk) -> RouterInput:
        """Return what the router reads of a chunk: hidden states and, for lexical baselines, the texts."""
        return RouterInput(states=chunk.states, mask=chunk.batch.mask, texts=chunk.rows)

    @torch.inference_mode()
    def route_chunk(self, chunk: Chunk) -> Route:
        """Route a chunk; columns of the result are the system's experts.

        Raises:
            ConfigError: no router was fitted.
        """
        if self.router is None:
            raise ConfigError(
                "the system has no router yet; name the task of each row (--task NAME), "
                "or fit one with 'dynamorouter fit router'"
            )
        route = self.router.route(self.router_input(chunk))
        if self._columns == list(range(len(self.experts))):
            return route
        wide = torch.zeros(len(chunk), len(self.experts) + 1, device=route.probabilities.device)
        wide[:, self._columns] = route.probabilities.to(wide.dtype)  # experts that were removed fall into the last
        wide = wide[:, :-1] / wide[:, :-1].sum(dim=1, keepdim=True).clamp_min(1e-12)
        options = self.router.state()[0]
        return Route.from_probabilities(
            wide, top_k=route.experts.shape[1], abstain_below=float(options.get("abstain_below", 0.0))
        )

    @torch.inference_mode()
    def answer_chunk(
        self, chunk: Chunk, experts: Sequence[int], *, mixture: tuple[Tensor, Tensor] | None = None
    ) -> list[Answer | None]:
        """Answer each row of a chunk with the head of its expert; rows with -1 are left out.

        Args:
            chunk: rows, with the trunk's states where they were read.
            experts: the expert of each row.
            mixture: experts ``(B, K)`` and weights ``(B, K)`` to mix under the row's head, instead of its expert alone;
                rows whose expert has a fusion keep to that, which is a mixture already.
        """
        parts: list[list[Any]] = [[] for _ in chunk.rows]
        for name, base in self.bases.items():
            mine = [i for i, e in enumerate(experts) if e >= 0 and self.experts[e].base == name]
            first, later = self._plan(chunk, experts, mine, name)
            for rows in self._alike(first, experts):
                self._finish(chunk, experts, rows, mixture, parts)
            self._full(base, later, experts, mixture, parts, chunk)
        return [
            self._heads[e].merge(part, row) if part else None
            for e, part, row in zip(experts, parts, chunk.rows, strict=True)
        ]

    def _plan(
        self, chunk: Chunk, experts: Sequence[int], mine: Sequence[int], name: str
    ) -> tuple[list[int], list[tuple[int, Window]]]:
        """Split a base's rows into those that go on from the trunk and windows that take a whole pass."""
        if name != self.router_base:
            base = self.bases[name]
            found = base.encoder.windows([chunk.rows[i] for i in mine], max_tokens=self.max_tokens, stride=self.stride)
            return [], [(mine[window.row], window) for window in found]
        on = [i for i in mine if chunk.depth and self._depths[experts[i]] >= chunk.depth]
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
        mixture: tuple[Tensor, Tensor] | None,
        parts: list[list[Any]],
    ) -> None:
        """Go on from the trunk's states through the experts' layers, in the pass that the router read."""
        base = self.bases[self.router_base]
        hidden, mask = chunk.states[chunk.depth], chunk.batch.mask
        if len(rows) < len(chunk):
            at = torch.tensor(rows, device=base.device)
            hidden, mask = hidden[at], mask[at]
        gate = self._gate(rows, experts, mixture, base.device)
        hidden = base.finish(hidden, mask, gate, depth=chunk.depth)
        self._decode(hidden, mask, [(i, chunk.windows[i][0]) for i in rows], experts, parts, chunk)

    def _full(
        self,
        base: Base,
        windows: Sequence[tuple[int, Window]],
        experts: Sequence[int],
        mixture: tuple[Tensor, Tensor] | None,
        parts: list[list[Any]],
        chunk: Chunk,
    ) -> None:
        """Run whole passes: other bases, experts below the trunk, further windows of long rows."""
        for rows in map(set, self._alike([row for row, _ in windows], experts)):
            mine = [item for item in windows if item[0] in rows]
            for group in token_batches([len(window) for _, window in mine], budget=self.tokens_per_batch):
                chosen = sorted((mine[i] for i in group), key=lambda item: (item[0], item[1].part))
                batch = base.encoder.collate([window.encoding for _, window in chosen], base.device)
                gate = self._gate([row for row, _ in chosen], experts, mixture, base.device)
                self._decode(base.full(batch, gate), batch.mask, chosen, experts, parts, chunk)

    def _gate(
        self, rows: Sequence[int], experts: Sequence[int], mixture: tuple[Tensor, Tensor] | None, device: torch.device
    ) -> Gate:
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
            self._heads,
        )
        for (row, window), part in zip(windows, found, strict=True):
            parts[row].extend([None] * (window.part + 1 - len(parts[row])))
            parts[row][window.part] = part

    def _predict(self, chunk: Chunk, known: Sequence[int]) -> list[Prediction]:
        if all(k >= 0 for k in known):
            experts, mixture, route = list(known), None, None
        else:
            route = self.route_chunk(chunk)
            best, away = route.experts[:, 0].tolist(), route.abstained.tolist()
            experts = [k if k >= 0 else (-1 if gone else e) for k, e, gone in zip(known, best, away, strict=True)]
            mixture = self._mixture(route, known)
        answers = self.answer_chunk(chunk, experts, mixture=mixture)
        probabilities = None if route is None else route.probabilities.tolist()
        predictions = []
        for i, ((text, pair), e, answer) in enumerate(zip(chunk.rows, experts, answers, strict=True)):
            if known[i] >= 0 or probabilities is None:
                chances = {self.names[e]: 1.0}
            else:
                chances = dict(zip(self.names, probabilities[i], strict=True))
            expert = self.experts[e] if e >= 0 else None
            predictions.append(
                Prediction(
                    text=text,
                    pair=pair,
                    task=expert.task.name if expert else None,
                    expert=expert.name if expert else None,
                    route=chances,
                    confidence=max(chances.values()),
                    answer=answer,
                )
            )
        return predictions

    @staticmethod
    def _mixture(route: Route, known: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """Return the top-k experts and weights, rows whose expert is given having it alone; ``None`` for top-1."""
        if route.experts.shape[1] == 1:
            return None
        chosen, weights = route.experts.clone(), route.weights.clone()
        for i, expert in enumerate(known):
            if expert >= 0:
                chosen[i], weights[i] = expert, 0.0
                weights[i, 0] = 1.0
        return chosen, weights

    def _known(self, tasks: Sequence[str | None] | None, rows: int) -> list[int]:
        if tasks is None:
            return [-1] * rows
        if len(tasks) != rows:
            raise DataError(f"there are {rows} texts, but {len(tasks)} tasks; give one task, or None, for each text")
        return [-1 if task is None else self.index(task) for task in tasks]


def check_rows(
    texts: Sequence[str], pairs: Sequence[str | None] | None = None, *, max_chars: int = MAX_CHARS
) -> list[Row]:
    """Pair texts up and refuse what no tokenizer should be given.

    Raises:
        DataError: the lists differ in length, or a text is empty, too long or holds control characters.
    """
    if isinstance(texts, str):
        raise DataError("texts is one string; give a list of strings, such as [text]")
    seconds: Sequence[str | None] = [None] * len(texts) if pairs is None else pairs
    if len(seconds) != len(texts):
        raise DataError(
            f"there are {len(texts)} texts, but {len(seconds)} pairs; give one pair, or None, for each text"
        )
    for i, (text, pair) in enumerate(zip(texts, seconds, strict=True)):
        check_text(text, where=f"text {i + 1}", max_chars=max_chars)
        if pair is not None:
            check_text(pair, where=f"pair {i + 1}", max_chars=max_chars)
    return list(zip(texts, seconds, strict=True))


def _base_of(library: Library, name: str, bases: Mapping[str, Base]) -> Base:
    wanted = library.card(name)["base"]["name"]
    if wanted not in bases:
        raise LibraryError(f"expert {name!r} sits on base {wanted!r}, which the system has not: {one_of(bases)}")
    return bases[wanted]
