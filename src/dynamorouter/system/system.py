"""A system: bases, a library of experts and a router, answering a mixed batch in a single pass.

    system = System.load("runs/quickstart/system")
    for prediction in system.predict(["A joy from start to finish."]):
        print(prediction.task, prediction.confidence, prediction.answer)

Letters: B batch, S positions, D width, E experts, K experts per row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynamorouter import __version__
from dynamorouter.errors import ConfigError, DataError, LibraryError, one_of, suggest
from dynamorouter.inference.engine import Chunk, Engine, Mixture, writes
from dynamorouter.inference.prediction import Prediction
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.config import BaseSpec
from dynamorouter.model.lora.expert import Expert, share_factors
from dynamorouter.model.text.tokenize import TextPair
from dynamorouter.routing import serialization as store
from dynamorouter.routing.base import Route, Router, RouterInput
from dynamorouter.routing.pooling import FeatureSample
from dynamorouter.system.library import Library
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.text import check_rows
from dynamorouter.utils.devices import pick_device, pick_dtype
from dynamorouter.utils.files import read_form, recover, write_json

MANIFEST, EXPERTS, ROUTER = "system.json", "experts", "router"
FORMAT = 1
ENTRIES = {"bases": dict, "router_base": str, "experts": list, "classes": list, "info": dict}
Row = TextPair


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

    def _place(self) -> None:
        """Put the experts into the banks of their bases."""
        self.names = [expert.name for expert in self.experts]
        self.engine = Engine(self.bases, self.experts, router_base=self.router_base, budget=self.tokens_per_batch)
        self.max_tokens, self.stride = self.engine.max_tokens, self.engine.stride
        self.refresh()

    def refresh(self) -> None:
        """Take note of a router that was put in place of another."""
        place = {name: index for index, name in enumerate(self.names)}
        self._columns = [place.get(name, -1) for name in self.classes]
        if self.router is not None:
            self.router.to(self.bases[self.router_base].device)

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
        manifest = read_form(path / MANIFEST, format=FORMAT, entries=ENTRIES)
        place = pick_device(device)
        dtype = pick_dtype(precision, place)
        specs = {name: BaseSpec(name=name, **values) for name, values in manifest["bases"].items()}
        bases = {name: Base.load(spec, device=place, dtype=dtype) for name, spec in specs.items()}
        library = Library(path / EXPERTS)
        experts = share_factors([library.load(name, _base_of(library, name, bases)) for name in manifest["experts"]])
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

    def save(self, folder: str | Path, *, skills: Mapping[str, FeatureSample] | None = None) -> Path:
        """Write the system: the experts, the router, and last the manifest.

        Args:
            folder: where; what is there of the same experts is replaced.
            skills: what a router read of experts' rows, by expert; of the others, what was kept beside them stays.
        """
        path = Path(folder)
        library = Library(path / EXPERTS)
        kept = {} if self.library is None else {name: self.library.skill(name) for name in self.library.names()}
        for expert in self.experts:
            skill = (skills or {}).get(expert.name) or kept.get(expert.name)
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
            name: {key: value for key, value in asdict(base.spec).items() if key != "name"}
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
        *,
        generation: Mapping[str, Any] | None = None,
    ) -> list[Prediction]:
        """Answer each text with the expert that the router chooses for it, be the answer a label or a written text.

        Args:
            texts: single texts, first texts of pairs, or questions.
            pairs: second texts or contexts; ``None`` where a text stands alone.
            tasks: names of experts (or of their tasks) to use instead of routing; ``None`` routes the row.
            generation: settings of written answers that differ from the tasks' own, such as ``max_new_tokens``.

        Raises:
            DataError: a text is empty, too long or holds control characters, or the lists differ in length.
            ConfigError: a task is unknown, or rows must be routed and no router was fitted.
        """
        rows = check_rows(texts, pairs)
        known = self._known(tasks, len(rows))
        predictions: list[Prediction | None] = [None] * len(rows)
        for positions, chunk in self.chunks(rows, read=any(k < 0 for k in known)):
            mine = [known[i] for i in positions]
            for position, prediction in zip(positions, self._predict(chunk, mine, generation), strict=True):
                predictions[position] = prediction
        return [prediction for prediction in predictions if prediction is not None]

    def generate(
        self,
        prompts: Sequence[str],
        pairs: Sequence[str | None] | None = None,
        tasks: Sequence[str | None] | None = None,
        **generation: Any,
    ) -> list[str]:
        """Write a text for each prompt with the likeliest of the experts that write, or a mixture of the first k.

        A prompt of which the router is less sure than ``abstain_below`` gets an empty text.

        Args:
            prompts: texts or instructions.
            pairs: inputs that go with them; ``None`` where there is none.
            tasks: names of experts to use instead of routing.
            **generation: ``max_new_tokens``, ``temperature``, ``top_k``, ``top_p``, ``no_repeat_ngram``,
                ``repetition_penalty``, ``stop``, ``seed``.

        Raises:
            ConfigError: no expert of the system writes, or a task names one that does not.
        """
        found = [""] * len(prompts)
        for positions, chunk, experts, mixture in self._writers_of(prompts, pairs, tasks):
            answers = self.answer_chunk(chunk, experts, mixture=mixture, generation=generation)
            for position, answer in zip(positions, answers, strict=True):
                found[position] = "" if answer is None else str(answer.value)
        return found

    def stream(self, prompt: str, pair: str | None = None, task: str | None = None, **generation: Any) -> Iterator[str]:
        """Write a text as ``generate`` does, and yield it piece by piece, with the white space around it.

        Raises:
            ConfigError: no expert of the system writes, or ``task`` names one that does not.
        """
        ((_, chunk, (expert,), mixture),) = self._writers_of([prompt], [pair], [task])
        if expert >= 0:
            yield from self.engine.stream(chunk, expert, mixture=mixture, generation=generation)

    def _writers_of(
        self, prompts: Sequence[str], pairs: Sequence[str | None] | None, tasks: Sequence[str | None] | None
    ) -> Iterator[tuple[list[int], Chunk, list[int], Mixture | None]]:
        """Yield chunks of prompts with the expert that writes each, -1 for none, and what is mixed under it."""
        can = [index for index, expert in enumerate(self.experts) if writes(expert)]
        rows, names = check_rows(prompts, pairs), one_of(self.names[index] for index in can)
        known = self._known(tasks, len(rows))
        wrong = sorted({self.names[k] for k in known if k >= 0 and k not in can})
        if not can or wrong:
            raise ConfigError(
                f"{f'expert {wrong[0]!r} does' if wrong else 'the experts of this system do'} not write text; "
                + (f"those that do: {names}" if can else "train one with head: causal_lm or seq2seq")
            )
        routed = len(can) > 1 and any(k < 0 for k in known)
        for positions, chunk in self.chunks(rows, read=routed):
            own = [known[position] for position in positions]
            if routed:
                route = self._among(can, self.route_chunk(chunk))
                yield positions, chunk, self._first(route, own), self._mixture(route, own)
            else:
                yield positions, chunk, [can[0] if k < 0 else k for k in own], None

    def _among(self, can: Sequence[int], route: Route) -> Route:
        """Choose anew among some of the experts."""
        if len(can) == len(self.experts):
            return route
        kept = torch.zeros_like(route.probabilities)
        kept[:, list(can)] = route.probabilities[:, list(can)].clamp_min(1e-12)
        return self._rebuilt(kept, route)

    @staticmethod
    def _first(route: Route, known: Sequence[int]) -> list[int]:
        """Return the expert of each row: the one that was given, the first of the route, or -1 where it abstains."""
        best, away = route.experts[:, 0].tolist(), route.abstained.tolist()
        return [k if k >= 0 else (-1 if gone else e) for k, e, gone in zip(known, best, away, strict=True)]

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
        """Cut rows into batches of similar length, with the trunk's states that the router needs if ``read``."""
        self.engine.budget = self.tokens_per_batch
        layers = self.router.layers if read and self.router is not None else ()
        return self.engine.chunks(rows, layers=layers)

    def router_input(self, chunk: Chunk) -> RouterInput:
        """Return what the router reads of a chunk: hidden states and, for lexical baselines, the texts."""
        return RouterInput(states=chunk.states, mask=chunk.batch.mask, texts=chunk.rows)

    @torch.inference_mode()
    def route_chunk(self, chunk: Chunk) -> Route:
        """Route a chunk; columns of the result are the system's experts.

        A pair goes only to experts whose tasks have a second text, if there are any; a single text may go to all.

        Raises:
            ConfigError: no router was fitted.
        """
        if self.router is None:
            raise ConfigError(
                "the system has no router yet; name the task of each row (--task NAME), "
                "or fit one with 'dynamorouter fit router'"
            )
        route = self.router.route(self.router_input(chunk))
        if self._columns != list(range(len(self.experts))):
            wide = torch.zeros(len(chunk), len(self.experts) + 1, device=route.probabilities.device)
            wide[:, self._columns] = route.probabilities.to(wide.dtype)  # removed experts fall into the last
            route = self._rebuilt(wide[:, :-1], route)
        takes = torch.tensor([e.task.columns.pair is not None for e in self.experts], device=route.experts.device)
        paired = torch.tensor([pair is not None for _, pair in chunk.rows], device=route.experts.device)
        if not self.router.respects_pairs or bool(takes.all()) or not bool(takes.any()) or not bool(paired.any()):
            return route
        narrow = torch.where(takes, route.probabilities.clamp_min(1e-12), 0.0)
        return self._rebuilt(narrow, route).where(paired, route)

    def _rebuilt(self, probabilities: Tensor, route: Route) -> Route:
        """Choose anew by other probabilities ``(B, E)``, as many experts as ``route`` has, by the router's options."""
        options = self.router.state()[0] if self.router is not None else {}
        return Route.from_probabilities(
            probabilities / probabilities.sum(dim=1, keepdim=True).clamp_min(1e-12),
            top_k=route.experts.shape[1],
            abstain_below=float(options.get("abstain_below", 0.0)),
        )

    def answer_chunk(
        self,
        chunk: Chunk,
        experts: Sequence[int],
        *,
        mixture: Mixture | None = None,
        generation: Mapping[str, Any] | None = None,
        silent: Collection[int] = (),
    ) -> list[Answer | None]:
        """Answer each row of a chunk with its expert, or with the mixture under that expert's head (see ``Engine``)."""
        return self.engine.answer(chunk, experts, mixture=mixture, generation=generation, silent=silent)

    def _predict(
        self, chunk: Chunk, known: Sequence[int], generation: Mapping[str, Any] | None = None
    ) -> list[Prediction]:
        if all(k >= 0 for k in known):
            experts, mixture, route = list(known), None, None
        else:
            route = self.route_chunk(chunk)
            experts, mixture = self._first(route, known), self._mixture(route, known)
        answers = self.answer_chunk(chunk, experts, mixture=mixture, generation=generation)
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
    def _mixture(route: Route, known: Sequence[int]) -> Mixture | None:
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


def _base_of(library: Library, name: str, bases: Mapping[str, Base]) -> Base:
    wanted = library.card(name)["base"]["name"]
    if wanted not in bases:
        raise LibraryError(f"expert {name!r} sits on base {wanted!r}, which the system has not: {one_of(bases)}")
    return bases[wanted]
