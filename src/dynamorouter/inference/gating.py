"""Gates of rows over mounted experts: which slots of the banks a row uses, and from which block on.

Letters: B batch, K experts per row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from dynamorouter.errors import LibraryError, one_of
from dynamorouter.inference.policy import BARE, Assignment
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.gate import Gate
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.lora.fusion import Fusion
from dynamorouter.model.lora.gates import FusionGate, RowGate
from dynamorouter.model.text.passes import Gates


class ExpertGates:
    """Makes gates for the rows of a batch from the experts that they are assigned.

    Args:
        bases: by name.
        experts: in the order of their indices.
        slots: of each expert in the banks of its base.

    Raises:
        LibraryError: a fusion mixes an expert that is not there.
    """

    def __init__(self, bases: Mapping[str, Base], experts: Sequence[Expert], slots: Sequence[int]) -> None:
        self.bases, self.experts, self.slots = bases, experts, slots
        self._depths = [expert.lora.trunk_depth for expert in experts]
        self._sources = {
            index: self._sources_of(expert, expert.fusion)
            for index, expert in enumerate(experts)
            if expert.fusion is not None
        }
        for index, sources in self._sources.items():  # its rows leave the trunk where the first of them does
            self._depths[index] = min(experts[source].lora.trunk_depth for source in sources)

    def begins(self, row: int, assignment: Assignment) -> int:
        """Return the block where a row's experts begin: the lowest of those that are mixed for it on its base."""
        index = assignment.experts[row]
        if index == BARE:
            return max(base.depth for base in self.bases.values())
        if assignment.mixture is None or index in self._sources:
            return self._depths[index]
        experts, weights = (part[row].tolist() for part in assignment.mixture)
        base = self.experts[index].base
        depths = [
            self._depths[expert]
            for expert, weight in zip(experts, weights, strict=True)
            if weight > 0 and self.experts[expert].base == base
        ]
        return min(depths, default=self._depths[index])

    def alike(self, rows: Sequence[int], assignment: Assignment) -> list[list[int]]:
        """Split rows into those that can share a gate: all plain experts together, and each fusion for itself."""
        by_fusion: dict[int | None, list[int]] = {}
        for row in rows:
            expert = assignment.experts[row]
            by_fusion.setdefault(expert if expert in self._sources else None, []).append(row)
        return list(by_fusion.values())

    def gates(self, assignment: Assignment) -> Gates:
        """Return what makes the gate of some rows (see ``gate``)."""
        return lambda rows: self.gate(rows, assignment)

    def gate(self, rows: Sequence[int], assignment: Assignment) -> Gate:
        """Return the gate of rows of one base that ``alike`` put together, in their order; none of them abstained."""
        answering = [assignment.experts[row] for row in rows]
        first = max(answering)
        device = next(iter(self.bases.values())).device
        if first == BARE:
            return RowGate(torch.full((len(rows),), -1, device=device))
        fusion, base = self.experts[first].fusion, self.experts[first].base
        if fusion is not None:
            slots = torch.tensor([self.slots[source] for source in self._sources[first]], device=device)
            return FusionGate(fusion.layers, slots, rows=len(rows))
        if assignment.mixture is None:
            return RowGate(torch.tensor([-1 if e == BARE else self.slots[e] for e in answering], device=device))
        experts, weights = (part[list(rows)] for part in assignment.mixture)
        slot_of = [
            slot if expert.base == base else -1 for slot, expert in zip(self.slots, self.experts, strict=True)
        ]  # experts on another base cannot take part in these rows' mixture
        return RowGate(torch.tensor(slot_of, device=device)[experts.to(device)], weights.to(device))

    def _sources_of(self, expert: Expert, fusion: Fusion) -> list[int]:
        """Return the indices of the experts that a fusion mixes."""
        index_of = {source.name: index for index, source in enumerate(self.experts) if source.base == expert.base}
        missing = [name for name in fusion.sources if name not in index_of]
        if missing:
            raise LibraryError(
                f"expert {expert.name!r} mixes {one_of(fusion.sources)}, but base {expert.base!r} has no expert "
                f"{one_of(map(repr, missing))} in this system; put back what is missing, or remove {expert.name!r}"
            )
        fusion.to(self.bases[expert.base].device).head.eval()
        return [index_of[name] for name in fusion.sources]
