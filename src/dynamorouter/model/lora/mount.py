"""Experts mounted over the linear layers of a frozen base.

``with mount(base, experts) as mounted:`` puts a bank over every layer that an expert changes, and gives the layers back
at the end; ``mounted.close()`` does so without a ``with`` block. A second mount covers the first while it is open: the
inner one's experts are at work, and the outer ones are as before afterwards. A mount lives as long as somebody holds
it, so hold on to what ``mount`` returns.

Letters: D in, O out, E slots, R rank.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import Protocol, Self

from dynamorouter.errors import AdapterError, LibraryError, one_of
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.context import Cover
from dynamorouter.model.lora.bank import LoraBank
from dynamorouter.model.lora.factors import Factors

GROWTH = 1.5
"""By how much the slots grow when an expert finds none free: adding N experts copies each a bounded number of times."""


class Mountable(Protocol):
    """What can be mounted, such as an ``Expert``."""

    @property
    def name(self) -> str:
        """Unique among the experts of a mount."""

    @property
    def factors(self) -> Mapping[str, Factors]:
        """Name of a linear layer of the base to the expert's change to it."""


class Mounted:
    """Experts that lie over a base, in slots of the banks of its layers; made by ``mount``.

    Args:
        base: the frozen base.
        experts: in the order of their slots.
        spare: free slots for experts to come.
        share: whether experts that hold the same ``factors``, as after a merge, share a slot.
        trainable: whether the banks' factors take gradients.

    Attributes:
        base: the frozen base.
        banks: by layer; those of the layers that some expert changes.
        slots: name of an expert to its place in the banks, as gates name it.
        capacity: number of slots E, free ones included.

    Raises:
        AdapterError: an expert names a layer that the base has not.
        LibraryError: two experts have one name.
    """

    def __init__(
        self,
        base: Base,
        experts: Sequence[Mountable],
        *,
        spare: int = 0,
        share: bool = False,
        trainable: bool = False,
    ) -> None:
        self.base = base
        self.share = share
        self.trainable = trainable
        self.banks: dict[str, LoraBank] = {}
        self.slots: dict[str, int] = {}
        self.capacity = spare + (len({id(expert.factors) for expert in experts}) if share else len(experts))
        self._factors: dict[int, Mapping[str, Factors]] = {}  # what lies in each slot that is taken
        with base.context.lock:
            for expert in experts:
                self._check_layers(expert)
            self._reserve(_ranks(expert.factors for expert in experts))
            for expert in experts:
                self._check_name(expert)
                self._fill_slot(expert)
            _settle(base)
            base.context.mounts.append(weakref.ref(self))
            _show(base, self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_active(self) -> bool:
        """Whether these experts are the ones that a pass over the base goes through."""
        mounts = self.base.context.mounts
        if mounts and mounts[-1]() is self:
            return True
        _settle(self.base)
        return bool(mounts) and mounts[-1]() is self

    def check(self) -> None:
        """Refuse to go through the experts of somebody else.

        Raises:
            LibraryError: another mount lies over this one, or this one was closed.
        """
        if not self.is_active:
            name = self.base.spec.name
            raise LibraryError(
                f"these experts are no longer mounted on base {name!r}: {one_of(self.slots)}; another system or "
                "training put others in their place, or they were closed; load the system again (System.load), close "
                f"the other one, or give each a base of its own (Base.load)"
            )

    def add(self, expert: Mountable) -> int:
        """Put a further expert into a free slot and return the slot; what the others do stays the same to the bit.

        Where no slot is free, all banks grow. Layers that nobody has changed so far get banks. Banks of a lower rank
        are padded with zeros: the others are then the same up to rounding, since their sums run over the zeros.

        Raises:
            AdapterError: the expert names a layer that the base has not.
            LibraryError: there is an expert of that name.
        """
        with self.base.context.lock:
            self._check_layers(expert)
            self._check_name(expert)
            if self._slot_of(expert.factors) is None and len(self._factors) == self.capacity:
                self.capacity = max(self.capacity + 1, ceil(GROWTH * self.capacity))
                for bank in self.banks.values():
                    bank.resize(experts=self.capacity)
            self._reserve(_ranks([expert.factors]))
            slot = self._fill_slot(expert)
            self._show_again()
            return slot

    def remove(self, name: str) -> None:
        """Take an expert out; its slot is zeroed and free for the next one; the others stay as they are.

        Raises:
            LibraryError: there is no expert of that name.
        """
        if name not in self.slots:
            raise LibraryError(
                f"there is no expert {name!r} on base {self.base.spec.name!r}; mounted are {one_of(self.slots) or '-'}"
            )
        with self.base.context.lock:
            slot = self.slots.pop(name)
            if slot in self.slots.values():
                return  # an expert of the same factors is still there
            layers = self._factors.pop(slot)
            ranks = _ranks(self._factors.values())
            for layer in layers:
                if layer in ranks:
                    self.banks[layer].clear(slot)
                    self.banks[layer].resize(rank=ranks[layer])
                else:
                    del self.banks[layer]
            self._show_again()

    def close(self) -> None:
        """Give the layers back to the mount beneath, or to the bare base; a second call does nothing."""
        context = self.base.context
        with context.lock:
            context.mounts[:] = [mount for mount in context.mounts if mount() is not self]
            _settle(self.base)
            _show(self.base, context.mounts[-1]() if context.mounts else None)

    def factors(self, name: str) -> dict[str, Factors]:
        """Return a copy of an expert's factors at their own rank, as they are now, on the CPU."""
        slot = self.slots[name]
        return {
            layer: self.banks[layer].get(slot, factors.a.shape[0]) for layer, factors in self._factors[slot].items()
        }

    def _check_layers(self, expert: Mountable) -> None:
        if missing := [layer for layer in expert.factors if layer not in self.base.linear]:
            raise AdapterError(
                f"expert {expert.name!r} changes layer {missing[0]!r}, which base {self.base.spec.name!r} has not; "
                "it belongs to another base: name that base when you add it"
            )

    def _check_name(self, expert: Mountable) -> None:
        if expert.name in self.slots:
            raise LibraryError(
                f"there is an expert {expert.name!r} on base {self.base.spec.name!r} already; mounted are "
                f"{one_of(self.slots)}; give the new one another name, or remove the old one first"
            )

    def _reserve(self, ranks: Mapping[str, int]) -> None:
        """Make room for these ranks, by layer: new banks where there are none, and zeros where they are too narrow."""
        for layer, rank in ranks.items():
            if layer in self.banks:
                self.banks[layer].resize(rank=max(rank, self.banks[layer].rank))
            else:
                frozen = self.base.linear[layer]
                bank = LoraBank(frozen, self.base.context, experts=self.capacity, rank=rank, name=layer)
                bank.a.requires_grad_(self.trainable)
                bank.b.requires_grad_(self.trainable)
                self.banks[layer] = bank

    def _fill_slot(self, expert: Mountable) -> int:
        """Write an expert's factors into a free slot, unless it shares one that holds them already."""
        slot = self._slot_of(expert.factors)
        if slot is None:
            slot = next(slot for slot in range(self.capacity) if slot not in self._factors)
            for layer, factors in expert.factors.items():
                self.banks[layer].put(slot, factors, name=layer)
            self._factors[slot] = expert.factors
        self.slots[expert.name] = slot
        return slot

    def _slot_of(self, factors: Mapping[str, Factors]) -> int | None:
        """Return the slot that an expert of these factors shares."""
        occupied = self._factors.items() if self.share else ()
        return next((slot for slot, slot_factors in occupied if slot_factors is factors), None)

    def _show_again(self) -> None:
        """Let the base see banks that have come or gone."""
        if self.is_active:
            _show(self.base, self)


def mount(
    base: Base, experts: Sequence[Mountable], *, spare: int = 0, share: bool = False, trainable: bool = False
) -> Mounted:
    """Mount experts on a base; see ``Mounted``, whose arguments these are."""
    return Mounted(base, experts, spare=spare, share=share, trainable=trainable)


def _ranks(experts: Iterable[Mapping[str, Factors]]) -> dict[str, int]:
    """Return the largest rank of the experts on each layer."""
    ranks: dict[str, int] = {}
    for factors in experts:
        for layer, change in factors.items():
            ranks[layer] = max(ranks.get(layer, 1), change.a.shape[0])
    return ranks


def _settle(base: Base) -> None:
    """Forget mounts that nobody holds any more; what they covered comes back."""
    mounts = base.context.mounts
    with base.context.lock:
        alive = [mount for mount in mounts if mount() is not None]
        if len(alive) < len(mounts):
            mounts[:] = alive
            _show(base, alive[-1]() if alive else None)


def _show(base: Base, mounted: Cover | None) -> None:
    """Put the banks of a mount over the base's layers, and nothing over the others."""
    banks: Mapping[str, LoraBank] = {} if mounted is None else mounted.banks
    for name, frozen in base.linear.items():
        base.cover(name, banks.get(name, frozen))
