"""Route policy: which of a system's experts answer a batch, given what the router makes of it.

A router knows only the classes that it was fitted on. The policy turns its route into one over the experts that a
system has now: removed experts fall away, pairs go to experts that read pairs, a request for text goes to experts that
generate, rows whose task is named keep to it, and rows of which the router is not sure are left out.

Letters: B batch, C classes of the router, E experts of the system, K experts per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from dynamorouter.errors import ConfigError, DataError, one_of, suggest
from dynamorouter.model.text.tokenize import TextPair
from dynamorouter.routing.base import Route

Mixture = tuple[Tensor, Tensor]
"""Experts ``(B, K)`` and their weights ``(B, K)``."""
ROUTED = -1
"""Stands for the expert of a row whose task is not named."""
ABSTAINED = -1
"""Stands for the expert of a row that none answers."""
BARE = -2
"""Stands for the base without any expert, which writes the answer of a row by itself."""
BARE_BASE = "base"
"""The name that the bare base is asked for by, unless an expert or a task has it."""
Fallback = Literal["none", "base"]
"""What answers a row that the router abstains from: nothing, or the bare base."""
LEAST = 1e-12
"""Probability that an expert keeps, however unlikely, where those that may not answer are taken away."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the policy needs to know of an expert.

    Attributes:
        name: of the expert.
        task: name of its task.
        reads_pairs: whether its task has a second text.
        is_generative: whether it answers with a text of its own.
    """

    name: str
    task: str
    reads_pairs: bool = False
    is_generative: bool = False


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which experts answer the rows of a batch.

    Attributes:
        experts: the expert whose head answers each row, ``ABSTAINED`` where none does, ``BARE`` for the bare base.
        named: the expert of each row whose task was named, ``BARE`` for the bare base, ``ROUTED`` for the others.
        mixture: experts and weights that are mixed under those heads; ``None`` where each answers alone.
        route: over all experts of the system; ``None`` where nothing was routed.
    """

    experts: Sequence[int]
    named: Sequence[int]
    mixture: Mixture | None = None
    route: Route | None = None

    @staticmethod
    def fixed(experts: Sequence[int], mixture: Mixture | None = None) -> Assignment:
        """Assign to each row the expert that it is given, ``ABSTAINED`` for none."""
        return Assignment(experts, experts, mixture)


@dataclass(frozen=True)
class RoutePolicy:
    """Which experts may answer which rows.

    Attributes:
        candidates: the system's experts, in the order of their indices.
        classes: names of the experts that the router was fitted on, in the order of its own indices.
        abstain_below: a row whose best expert is less probable is answered by none.
        respects_pairs: whether pairs are kept from experts that read single texts.
        threshold: takes the place of ``abstain_below`` this time; ``None`` leaves abstaining to the router.
        top_k: how many experts are mixed for a row; ``None`` for as many as the router says.
        fallback: what answers rows that are abstained from.
        base_writes: whether a base of the system writes without any expert.
    """

    candidates: tuple[Candidate, ...]
    classes: tuple[str, ...] = ()
    abstain_below: float = 0.0
    respects_pairs: bool = True
    threshold: float | None = None
    top_k: int | None = None
    fallback: Fallback = "none"
    base_writes: bool = False

    def asked(
        self, *, abstain_below: float | None = None, top_k: int | None = None, fallback: Fallback | None = None
    ) -> RoutePolicy:
        """Return the policy with what is otherwise this time; ``None`` leaves a setting as it is.

        Raises:
            ConfigError: a value is out of range, or the bare base is to answer and cannot write.
        """
        if abstain_below is not None and not 0.0 <= abstain_below <= 1.0:
            raise ConfigError(f"abstain_below is {abstain_below}; it is a probability, set it between 0 and 1")
        if top_k is not None and not 1 <= top_k <= len(self.candidates):
            raise ConfigError(
                f"top_k is {top_k}, the number of experts that are mixed for a row; the system has "
                f"{len(self.candidates)}: set it between 1 and that (of generated text, that is generation's top_k)"
            )
        if fallback == "base":
            self._check_base_writes()
        return replace(self, threshold=abstain_below, top_k=top_k, fallback=fallback or self.fallback)

    @cached_property
    def generative(self) -> list[int]:
        """The experts that answer with a text of their own."""
        return [index for index, candidate in enumerate(self.candidates) if candidate.is_generative]

    def index(self, name: str) -> int:
        """Return the index of an expert by its own name or its task's.

        Raises:
            ConfigError: there is none.
        """
        experts = [candidate.name for candidate in self.candidates]
        for names in (experts, [candidate.task for candidate in self.candidates]):
            if name in names:
                return names.index(name)
        raise ConfigError(
            f"the system has no expert for task {name!r}{suggest(name, experts)}; it has: {one_of(experts)}"
        )

    def named(self, tasks: Sequence[str | None] | None, rows: int, *, generative_only: bool = False) -> list[int]:
        """Return the expert of each row whose task is named, ``BARE`` for the bare base, ``ROUTED`` for the others.

        Args:
            tasks: a name, ``base`` for the bare base, or ``None`` for each row; ``None`` where no task is named at all.
            rows: how many there are.
            generative_only: whether every row wants a text.

        Raises:
            DataError: there are not as many tasks as rows.
            ConfigError: a task is unknown, or a text is wanted of an expert that generates none.
        """
        tasks = [None] * rows if tasks is None else tasks
        if len(tasks) != rows:
            raise DataError(f"there are {rows} texts, but {len(tasks)} tasks; give one task, or None, for each text")
        named = [ROUTED if task is None else self._named(task) for task in tasks]
        if generative_only:
            able = [self.candidates[expert].name for expert in self.generative]
            if not able and any(expert != BARE for expert in named):
                raise ConfigError(
                    "the experts of this system do not generate text; train one with head: causal_lm or seq2seq"
                )
            for expert in named:
                if expert not in (ROUTED, BARE, *self.generative):
                    raise ConfigError(
                        f"expert {self.candidates[expert].name!r} does not generate text; those that do: {one_of(able)}"
                    )
        return named

    def needs_route(self, named: Sequence[int], *, generative_only: bool = False) -> bool:
        """Tell whether a router has to look at rows, given the expert of each whose task is named, else ``ROUTED``."""
        return ROUTED in named and not (generative_only and len(self.generative) == 1)

    def narrow(self, route: Route, rows: Sequence[TextPair], *, generative_only: bool = False) -> Route:
        """Return a route over the router's classes as one over the system's experts, as many per row as it has.

        A pair goes only to experts whose tasks have a second text, if there are any; a single text may go to all.

        Args:
            route: what the router made of the rows, its probabilities ``(B, C)``.
            rows: texts and pairs.
            generative_only: take experts that do not generate away.
        """
        if self._columns != list(range(len(self.candidates))):
            probabilities = route.probabilities
            wide = probabilities.new_zeros(len(rows), len(self.candidates) + 1, dtype=torch.float32)
            wide[:, self._columns] = probabilities.to(wide.dtype)  # removed experts fall into the last
            route = self._chosen_anew(wide[:, :-1], route)
        device = route.probabilities.device
        reads_pairs = torch.tensor([candidate.reads_pairs for candidate in self.candidates], device=device)
        is_pair = torch.tensor([pair is not None for _, pair in rows], device=device)
        if self.respects_pairs and bool(reads_pairs.any()) and not bool(reads_pairs.all()) and bool(is_pair.any()):
            route = self._among(reads_pairs, route).where(is_pair, route)
        if generative_only and len(self.generative) < len(self.candidates):
            generates = torch.tensor([candidate.is_generative for candidate in self.candidates], device=device)
            route = self._among(generates, route)
        if self.top_k is not None and self.top_k != route.experts.shape[1]:
            route = self._chosen_anew(route.probabilities, route)
        return route if self.threshold is None else replace(route, abstained=route.confidence < self.threshold)

    def assign(self, route: Route | None, named: Sequence[int]) -> Assignment:
        """Assign an expert, or a mixture of the first K, to each row.

        Args:
            route: over the system's experts, as ``narrow`` returns it; ``None`` where ``needs_route`` says that none is
                needed.
            named: the expert of each row whose task is named, ``ROUTED`` for the others.
        """
        if route is None:
            return Assignment([self.generative[0] if expert == ROUTED else expert for expert in named], named)
        nobody = BARE if self.fallback == "base" else ABSTAINED
        experts = [
            expert if expert != ROUTED else nobody if abstained else best
            for expert, best, abstained in zip(
                named, route.experts[:, 0].tolist(), route.abstained.tolist(), strict=True
            )
        ]
        alone = [e if fixed != ROUTED or e == BARE else ROUTED for e, fixed in zip(experts, named, strict=True)]
        return Assignment(experts, named, _mixture(route, alone), route)

    def class_of(self, expert: int) -> int:
        """Return the router's index of an expert of the system, -1 where the router was not fitted on it."""
        return self._columns.index(expert) if expert in self._columns else -1

    @cached_property
    def _columns(self) -> list[int]:
        """The expert of each class; -1 where it was removed."""
        index_of = {candidate.name: index for index, candidate in enumerate(self.candidates)}
        return [index_of.get(name, -1) for name in self.classes]

    def _among(self, allowed: Tensor, route: Route) -> Route:
        """Choose anew among the experts that are marked in ``(E,)`` bool."""
        return self._chosen_anew(torch.where(allowed, route.probabilities.clamp_min(LEAST), 0.0), route)

    def _chosen_anew(self, probabilities: Tensor, route: Route) -> Route:
        """Return the route by other, unnormalised probabilities ``(B, E)``."""
        return Route.from_probabilities(
            probabilities / probabilities.sum(dim=1, keepdim=True).clamp_min(LEAST),
            top_k=self.top_k or route.experts.shape[1],
            abstain_below=self.abstain_below,
        )

    def _named(self, task: str) -> int:
        """Return the index of an expert, or ``BARE`` where the bare base is meant."""
        taken = any(task in (candidate.name, candidate.task) for candidate in self.candidates)
        if task != BARE_BASE or taken:
            return self.index(task)
        self._check_base_writes()
        return BARE

    def _check_base_writes(self) -> None:
        if not self.base_writes:
            raise ConfigError(
                "no base of this system writes a text without an expert, since an encoder has no language-model head; "
                f"name a task ({one_of(candidate.name for candidate in self.candidates)}), or use a base that generates"
            )


def _mixture(route: Route, alone: Sequence[int]) -> Mixture | None:
    """Return the experts and weights of a route; ``None`` for one expert per row.

    Args:
        route: over the system's experts.
        alone: the expert that a row has alone, ``BARE`` for none at all, ``ROUTED`` for those of the route.
    """
    if route.experts.shape[1] == 1:
        return None
    experts, weights = route.experts.clone(), route.weights.clone()
    for row, expert in enumerate(alone):
        if expert != ROUTED:
            experts[row], weights[row] = max(expert, 0), 0.0
            weights[row, 0] = float(expert >= 0)
    return experts, weights
