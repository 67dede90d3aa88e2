"""A system: bases, a library of experts and a router, answering a mixed batch in a single pass.

system = System.load("runs/quickstart/system")
for prediction in system.predict(["A joy from start to finish."]):
print(prediction.task, prediction.confidence, prediction.answer)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dynamorouter import __version__
from dynamorouter.config.bases import find_base
from dynamorouter.errors import LibraryError, one_of
from dynamorouter.inference.engine import Engine
from dynamorouter.inference.policy import Fallback
from dynamorouter.inference.prediction import Prediction, predictions
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.config import BaseSpec
from dynamorouter.model.lora.expert import Expert, share_factors
from dynamorouter.routing import serialization as store
from dynamorouter.routing.base import Router
from dynamorouter.routing.pooling import FeatureSample
from dynamorouter.system.adapters import import_adapters
from dynamorouter.system.joining import add_expert
from dynamorouter.system.library import Library
from dynamorouter.system.routes import fit_router
from dynamorouter.system.seen import SeenRows
from dynamorouter.tasks.text import check_rows
from dynamorouter.utils.devices import pick_device, pick_dtype
from dynamorouter.utils.explain import checked
from dynamorouter.utils.files import read_form, recover, write_json

MANIFEST, EXPERTS, ROUTER = "system.json", "experts", "router"
FORMAT = 1
ENTRIES = {"bases": dict, "router_base": str, "experts": list, "classes": list, "info": dict}
TOKENS_PER_BATCH = 8192
"""Most tokens in a pass, padding included, by default."""


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
        seen: the rows that were learned from, as far as they are known.
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
        tokens_per_batch: int = TOKENS_PER_BATCH,
        library: Library | None = None,
        seen: SeenRows | None = None,
    ) -> None:
        self.bases = dict(bases)
        self.experts = list(experts)
        self.names = [expert.name for expert in self.experts]
        self.router_base = router_base
        self.info = dict(info or {})
        self.library = library
        self.skills: dict[str, FeatureSample] = {}
        self.seen = SeenRows() if seen is None else seen
        self.engine = Engine(
            self.bases, self.experts, router, classes=classes, router_base=router_base, budget=tokens_per_batch
        )

    @staticmethod
    def new(base: str | Path | BaseSpec | Base, *, device: str = "auto", precision: str = "fp32") -> System:
        """Make a system of a base alone, which experts and then a router are added to.

        Args:
            base: a base's name (see ``dynamorouter list bases``), a folder, a hub id, a GGUF file, what describes one,
                or one that is loaded.
            device: see ``load``.
            precision: see ``load``.

        Raises:
            ConfigError: there is no such base, or it cannot be loaded.
        """
        base = base if isinstance(base, Base) else _load_base(base, pick_device(device), precision)
        return System({base.spec.name: base}, [], None, router_base=base.spec.name)

    @property
    def router(self) -> Router | None:
        """What chooses among ``classes``; ``use_router`` puts another in its place."""
        return self.engine.router

    @property
    def classes(self) -> list[str]:
        """Names of the experts that the router was fitted on, by its own index."""
        return list(self.engine.policy.classes)

    @property
    def tokens_per_batch(self) -> int:
        """Most tokens in a pass, padding included."""
        return self.engine.budget

    def use_router(self, router: Router | None, classes: Sequence[str]) -> None:
        """Route by another router from now on; ``classes`` are the experts that it was fitted on, by its own index."""
        self.engine.use_router(router, classes)

    def use_experts(self, experts: Sequence[Expert], bases: Mapping[str, Base] | None = None) -> None:
        """Answer with other experts, over other bases if they are given, from now on; the router stays."""
        self.bases = dict(self.bases if bases is None else bases)
        self.experts = list(experts)
        self.names = [expert.name for expert in self.experts]
        router, classes, budget = self.router, self.classes, self.tokens_per_batch
        self.engine = Engine(
            self.bases, self.experts, router, classes=classes, router_base=self.router_base, budget=budget
        )

    def skill(self, name: str) -> FeatureSample | None:
        """Return what a router read of some of an expert's rows, if it was kept."""
        if name in self.skills or self.library is None or name not in self.library.names():
            return self.skills.get(name)
        return self.library.skill(name)

    add_expert, import_adapters, fit_router = add_expert, import_adapters, fit_router

    @staticmethod
    def load(
        folder: str | Path,
        *,
        device: str = "auto",
        precision: str = "fp32",
        tokens_per_batch: int = TOKENS_PER_BATCH,
        bases: Mapping[str, Base] | None = None,
    ) -> System:
        """Load a saved system.

        Args:
            folder: what ``save`` wrote, such as ``runs/quickstart/system``.
            device: ``auto``, ``cpu`` or ``cuda``.
            precision: ``fp32``, ``bf16``, ``fp16`` or ``auto`` for the best that the device has.
            tokens_per_batch: most tokens in a pass, padding included.
            bases: those that are loaded already, by name; experts that are mounted on them are displaced.

        Raises:
            LibraryError: the folder is no system, or something in it is damaged or missing.
        """
        path = Path(folder)
        manifest = _read_manifest(path)
        loaded = _load_bases(manifest, path, bases or {}, pick_device(device), precision)
        library = Library(path / EXPERTS)
        experts = share_factors([library.load(name, _base_of(library, name, loaded)) for name in manifest["experts"]])
        router = store.load(path / ROUTER) if manifest["classes"] else None
        return System(
            loaded,
            experts,
            router,
            router_base=manifest["router_base"],
            classes=manifest["classes"],
            info=manifest["info"],
            tokens_per_batch=tokens_per_batch,
            library=library,
            seen=SeenRows.load(path),
        )

    def save(self, folder: str | Path, *, skills: Mapping[str, FeatureSample] | None = None) -> Path:
        """Write the system: the experts, the router, and last the manifest.

        Args:
            folder: where; what is there of the same experts is replaced.
            skills: what a router read of experts' rows, by expert; of the others, what was kept beside them stays.
        """
        path = Path(folder)
        library = Library(path / EXPERTS)
        for expert in self.experts:
            skill = (skills or {}).get(expert.name) or self.skill(expert.name)
            library.add(expert, self.bases[expert.base], skill=skill, replace=True)
        self.library = library
        self.save_router(path)
        return path

    def save_router(self, folder: str | Path) -> None:
        """Write the router, the seen rows and the manifest, leaving the experts' folders as they are."""
        path = Path(folder)
        self.seen.save(path)
        if self.router is not None:
            store.save(self.router, path / ROUTER)
        write_json(path / MANIFEST, _manifest(self))

    def unknown_rows(self) -> list[str]:
        """Return the experts of which it is not known what they have learned from: imported ones, and old ones."""
        own = [expert for expert in self.experts if "merge" not in expert.card]
        return [expert.name for expert in own if "source" in expert.card or expert.name not in self.seen.by_expert]

    # -- use ----------------------------------------------------------------------------------------------------

    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str | None] | None = None,
        tasks: Sequence[str | None] | None = None,
        *,
        abstain_below: float | None = None,
        top_k: int | None = None,
        fallback: Fallback | None = None,
        generation: Mapping[str, Any] | None = None,
    ) -> list[Prediction]:
        """Answer each text with the expert that the router chooses for it, be the answer a label or a generated text.

        Args:
            texts: single texts, first texts of pairs, or questions.
            pairs: second texts or contexts; ``None`` where a text stands alone.
            tasks: names of experts (or of their tasks) to use instead of routing, ``base`` for the bare base; ``None``
                routes the row.
            abstain_below: a row whose best expert is less probable is answered by none; the router's own by default.
            top_k: how many experts are mixed for a row; the router's own by default.
            fallback: ``base`` lets the bare base answer rows that the router abstains from.
            generation: settings of generated answers that differ from the tasks' own, such as ``max_new_tokens``.

        Raises:
            DataError: a text is empty, too long or holds control characters, or the lists differ in length.
            ConfigError: a task is unknown, rows must be routed and no router was fitted, a setting is out of range, or
                the bare base is asked and does not write.
        """
        policy = self.engine.policy.asked(abstain_below=abstain_below, top_k=top_k, fallback=fallback)
        rows = check_rows(texts, pairs)
        named = policy.named(tasks, len(rows))
        by_position: dict[int, Prediction] = {}
        for positions, assignment, answers in self.engine.answers(rows, named, policy=policy, generation=generation):
            chunk = [rows[position] for position in positions]
            by_position.update(zip(positions, predictions(chunk, self.experts, assignment, answers), strict=True))
        return [by_position[position] for position in range(len(rows))]

    def generate(
        self,
        prompts: Sequence[str],
        pairs: Sequence[str | None] | None = None,
        tasks: Sequence[str | None] | None = None,
        *,
        abstain_below: float | None = None,
        fallback: Fallback | None = None,
        **generation: Any,
    ) -> list[str]:
        """Generate a text for each prompt with the likeliest of the experts that do, or a mixture of the first k.

        A prompt of which the router is less sure than ``abstain_below`` gets an empty text.

        Args:
            prompts: texts or instructions.
            pairs: inputs that go with them; ``None`` where there is none.
            tasks: names of experts to use instead of routing, ``base`` for the bare base.
            abstain_below: as in ``predict``.
            fallback: as in ``predict``.
            **generation: what differs from the tasks' own, by the names of ``tasks.task.Generation`` or their aliases.

        Raises:
            ConfigError: no expert of the system generates, or a task names one that does not.
        """
        rows = check_rows(prompts, pairs)
        policy = self.engine.policy.asked(abstain_below=abstain_below, fallback=fallback)
        named = policy.named(tasks, len(rows), generative_only=True)
        texts = [""] * len(rows)
        for positions, _, answers in self.engine.answers(
            rows, named, policy=policy, generation=generation, generative_only=True
        ):
            for position, answer in zip(positions, answers, strict=True):
                texts[position] = "" if answer is None else str(answer.value)
        return texts

    def stream(
        self,
        prompt: str,
        pair: str | None = None,
        task: str | None = None,
        *,
        abstain_below: float | None = None,
        fallback: Fallback | None = None,
        **generation: Any,
    ) -> Iterator[str]:
        """Generate a text as ``generate`` does, and yield it piece by piece, with the white space around it.

        Raises:
            ConfigError: no expert of the system generates, or ``task`` names one that does not.
        """
        rows = check_rows([prompt], [pair])
        policy = self.engine.policy.asked(abstain_below=abstain_below, fallback=fallback)
        named = policy.named([task], 1, generative_only=True)
        yield from self.engine.stream(rows[0], named[0], policy=policy, generation=generation)

    def route(self, texts: Sequence[str], pairs: Sequence[str | None] | None = None) -> list[dict[str, float]]:
        """Return the probability of every expert for each text, without answering.

        Raises:
            DataError: a text cannot be used.
            ConfigError: no router was fitted.
        """
        rows = check_rows(texts, pairs)
        by_position: dict[int, dict[str, float]] = {}
        for positions, chunk in self.engine.chunks(rows):
            probabilities = self.engine.route(chunk).probabilities.tolist()
            for position, row in zip(positions, probabilities, strict=True):
                by_position[position] = dict(zip(self.names, row, strict=True))
        return [by_position[position] for position in range(len(rows))]

    def index(self, name: str) -> int:
        """Return the index of an expert by its own name or its task's.

        Raises:
            ConfigError: there is none.
        """
        return self.engine.policy.index(name)


def _read_manifest(path: Path) -> dict[str, Any]:
    """Return what a saved system's manifest says, its folder put back where its replacement was killed."""
    recover(path)
    if not (path / MANIFEST).is_file():
        raise LibraryError(
            f"{path} is no saved system: it has no {MANIFEST}; give the folder that 'dynamorouter run' wrote, "
            "such as runs/quickstart/system"
        )
    return read_form(path / MANIFEST, format=FORMAT, entries=ENTRIES)


def _manifest(system: System) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": __version__,
        "bases": {name: base.spec.model_dump(exclude={"name"}) for name, base in system.bases.items()},
        "router_base": system.router_base,
        "experts": system.names,
        "classes": system.classes if system.router is not None else [],
        "info": system.info,
    }


def _load_base(base: str | Path | BaseSpec, device: torch.device, precision: str) -> Base:
    spec = base if isinstance(base, BaseSpec) else find_base(str(base))
    return Base.load(spec, device=device, dtype=pick_dtype(precision, device))


def _load_bases(
    manifest: Mapping[str, Any], path: Path, loaded: Mapping[str, Base], device: torch.device, precision: str
) -> dict[str, Base]:
    """Return the bases that a manifest describes, those that are loaded already as they are."""
    specs = {
        name: checked(BaseSpec, {**values, "name": name}, what=f"base {name!r} of {path}")
        for name, values in manifest["bases"].items()
    }
    return {name: loaded.get(name) or _load_base(spec, device, precision) for name, spec in specs.items()}


def _base_of(library: Library, name: str, bases: Mapping[str, Base]) -> Base:
    base_name = library.card(name)["base"]["name"]
    if base_name not in bases:
        raise LibraryError(
            f"expert {name!r} has base model {base_name!r}, which the system lacks; it has: {one_of(bases)}"
        )
    return bases[base_name]
