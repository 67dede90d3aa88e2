"""Laws of mounted experts: each is as if it were alone, and coming and going leaves the others as they are."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from dynamorouter.errors import AdapterError, LibraryError
from dynamorouter.model.base.base import Base
from dynamorouter.model.lora.bank import LoraBank
from dynamorouter.model.lora.factors import Factors
from dynamorouter.model.lora.gates import RowGate, SoftGate
from dynamorouter.model.lora.mount import Mounted, mount
from dynamorouter.model.lora.targets import target_layers
from support.banks import Change, random_change

Loader = Callable[..., Base]
ARCHITECTURES = ["bert", "gpt2", "llama"]
"""With layers of ``nn.Linear`` and of GPT-2's ``Conv1D``."""


def make_experts(base: Base) -> list[Change]:
    """Experts of ranks 1 to 5, that leave out layers which others have."""
    layers = target_layers(base, "all-linear", trunk_depth=0)
    return [
        random_change(base, "low", dict.fromkeys(layers[::2], 1)),
        random_change(base, "mixed", {layer: 2 + i % 3 for i, layer in enumerate(layers)}, scaling=0.5),
        random_change(base, "top", dict.fromkeys(layers[-3:], 5)),
    ]


@torch.inference_mode()
def run(mounted: Mounted, names: Sequence[str]) -> Tensor:
    """Return the hidden states ``(B, S, D)`` of a batch that goes through the named experts, row by row."""
    base = mounted.base
    mounted.check()
    ids = torch.arange(5 * len(names)).reshape(len(names), 5) % 7 + 3
    batch = base.encoder.pad(ids.tolist(), [[0] * 5] * len(names), base.device)
    return base.forward(batch, RowGate(torch.tensor([mounted.slots[name] for name in names])))


def layers_of(base: Base) -> dict[str, nn.Module]:
    return {name: base.model.get_submodule(name) for name in base.linear}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_many_mounted_experts_are_as_many_mounts_of_one(tiny_base: Loader, architecture: str) -> None:
    base = tiny_base(architecture)
    experts = make_experts(base)
    names = [expert.name for expert in experts]
    with mount(base, experts, spare=2) as mounted:
        together = run(mounted, names)
        assert mounted.capacity == 5 and mounted.slots == {"low": 0, "mixed": 1, "top": 2}
    for i, expert in enumerate(experts):
        with mount(base, [expert]) as mounted:
            assert set(mounted.banks) == set(expert.factors)
            assert {name: bank.rank for name, bank in mounted.banks.items()} == {
                name: len(change.a) for name, change in expert.factors.items()
            }
            torch.testing.assert_close(run(mounted, [expert.name] * 3)[i], together[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("spare", [0, 1])
def test_added_and_removed_is_never_added_to_the_bit(tiny_base: Loader, architecture: str, spare: int) -> None:
    base = tiny_base(architecture)
    low, mixed, top = make_experts(base)
    with mount(base, [low, top], spare=spare) as mounted:
        before, covered = run(mounted, ["low", "top"]), set(mounted.banks)
        assert mounted.add(mixed) == 2
        assert set(mounted.banks) > covered and len(run(mounted, ["mixed", "low"])) == 2
        mounted.remove("mixed")
        assert set(mounted.banks) == covered and torch.equal(run(mounted, ["low", "top"]), before)
        for bank in mounted.banks.values():
            assert not bank.a[2].any() and not bank.b[2].any() and not bank.scaling[2].any()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_others_stay_to_the_bit_when_one_comes_and_goes(tiny_base: Loader, architecture: str) -> None:
    base = tiny_base(architecture)
    low, mixed, top = make_experts(base)
    everywhere = random_change(base, "everywhere", dict.fromkeys(mixed.factors, 1))
    with mount(base, [low, top]) as mounted:
        before = run(mounted, ["low", "top"])
        mounted.add(everywhere)  # also on layers that had no bank
        assert set(mounted.banks) == set(mixed.factors)
        assert torch.equal(run(mounted, ["low", "top"]), before)
        mounted.add(mixed)  # of higher rank: the sums run over further zeros
        torch.testing.assert_close(run(mounted, ["low", "top"]), before, atol=1e-6, rtol=1e-6)
        before = run(mounted, ["mixed", "top"])
        mounted.remove("low")
        assert torch.equal(run(mounted, ["mixed", "top"]), before)


def test_a_free_slot_is_used_again_and_adding_copies_nobody_elses_factors(tiny_base: Loader) -> None:
    base = tiny_base()
    low, mixed, top = make_experts(base)
    with mount(base, [mixed, low], spare=1) as mounted:
        stacked = {name: bank.a for name, bank in mounted.banks.items()}
        narrow = random_change(base, "narrow", dict.fromkeys(mixed.factors, 1))
        assert mounted.add(narrow) == 2
        mounted.remove("mixed")
        again = random_change(base, "again", {layer: len(f.a) for layer, f in mixed.factors.items()})
        mounted.remove("narrow")
        assert mounted.add(again) == 0 and mounted.add(narrow) == 2
        assert mounted.capacity == 3
        with mount(base, [again]) as alone:
            want = run(alone, ["again"])
        torch.testing.assert_close(run(mounted, ["again"]), want, atol=1e-5, rtol=1e-5)
    with mount(base, [mixed, low], spare=1) as mounted:
        stacked = {name: bank.a for name, bank in mounted.banks.items()}
        mounted.add(narrow)
        assert all(bank.a is stacked[name] for name, bank in mounted.banks.items())
        assert mounted.add(top) == 3 and mounted.capacity == 5  # grown by half
        assert mounted.add(again) == 4 and mounted.capacity == 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_precision_is_kept_when_banks_grow(tiny_base: Loader, dtype: torch.dtype) -> None:
    base = tiny_base()
    low, mixed, top = make_experts(base)
    base.model.to(dtype)
    with mount(base, [low, mixed]) as mounted:
        before = run(mounted, ["low", "mixed"])
        assert before.dtype == dtype
        mounted.add(top)
        assert run(mounted, ["top"]).dtype == dtype
        assert all(side.dtype == torch.float32 for bank in mounted.banks.values() for side in (bank.a, bank.b))
        mounted.remove("top")
        assert torch.equal(run(mounted, ["low", "mixed"]), before)


def test_a_gradient_reaches_no_free_slot(tiny_base: Loader) -> None:
    base = tiny_base()
    low, mixed, top = make_experts(base)
    with mount(base, [low, mixed, top], spare=2, trainable=True) as mounted:
        mounted.remove("low")
        batch = base.encoder.pad([[4, 5, 6]] * 2, [[0] * 3] * 2, base.device)
        for gate in (RowGate(torch.tensor([1, 2])), SoftGate(torch.full((2, 5), 0.2))):
            base.forward(batch, gate)[..., 0].sum().backward()
            for bank in mounted.banks.values():
                for side in (bank.a, bank.b):
                    assert side.grad is not None and not side.grad[[0, 3, 4]].any()
            assert any(bank.b.grad is not None and bank.b.grad[1].any() for bank in mounted.banks.values())
    with mount(base, [mixed]) as frozen:
        assert not any(side.requires_grad for bank in frozen.banks.values() for side in (bank.a, bank.b))


def test_mounts_nest_and_restore(tiny_base: Loader) -> None:
    base = tiny_base()
    bare = layers_of(base)
    low, mixed, top = make_experts(base)
    with mount(base, [low, top]) as outer:
        before = run(outer, ["low", "top"])
        with mount(base, [mixed]) as inner:
            assert len(run(inner, ["mixed"])) == 1
            message = r"no longer mounted on base 'tiny': low, top; .*System.load.*close the other.*Base.load"
            with pytest.raises(LibraryError, match=message):
                outer.check()
            outer.add(random_change(base, "other", dict.fromkeys(mixed.factors, 1)))  # at rest it may change, too
            assert not outer.is_active and layers_of(base).items() >= inner.banks.items()
        assert torch.equal(run(outer, ["low", "top"]), before)
        inner.close()  # a second time
        assert outer.is_active and not inner.is_active
        third = mount(base, [low])
        outer.close()
        assert third.is_active  # what lies beneath may go first
        third.close()
    assert layers_of(base) == bare and not base.context.mounts


def test_experts_that_nobody_holds_are_gone(tiny_base: Loader) -> None:
    base = tiny_base()
    low, mixed, _ = make_experts(base)
    held = mount(base, [low])
    before = run(held, ["low"])
    dropped = mount(base, [mixed])
    assert not held.is_active
    del dropped
    gc.collect()
    assert torch.equal(run(held, ["low"]), before)
    covering = [module for module in layers_of(base).values() if isinstance(module, LoraBank)]
    assert len(covering) == len(low.factors)


def test_experts_share_a_slot_where_they_may(tiny_base: Loader) -> None:
    base = tiny_base()
    low, mixed, _ = make_experts(base)
    twin = Change("twin", low.factors)
    with mount(base, [low, twin]) as mounted:
        assert mounted.slots == {"low": 0, "twin": 1}
    with mount(base, [low, mixed, twin], share=True) as mounted:
        assert mounted.slots == {"low": 0, "mixed": 1, "twin": 0} and mounted.capacity == 2
        before = run(mounted, ["twin"])
        mounted.remove("low")
        assert torch.equal(run(mounted, ["twin"]), before)
        assert mounted.add(low) == 0
        back = mounted.factors("twin")
        for layer, change in low.factors.items():
            assert torch.equal(back[layer].a, change.a) and torch.equal(back[layer].b, change.b)


def test_what_cannot_be_mounted_is_refused_by_name(tiny_base: Loader) -> None:
    base = tiny_base()
    low = make_experts(base)[0]
    stranger = Change("stranger", {"encoder.layer.99.query": Factors(torch.ones(1, 1), torch.ones(1, 1), 1.0)})
    with pytest.raises(AdapterError, match=r"'stranger' changes layer 'encoder.layer.99.query', which base 'tiny' has"):
        mount(base, [low, stranger])
    with pytest.raises(LibraryError, match="is an expert 'low' on base 'tiny' already; mounted are low; give the new"):
        mount(base, [low, low])
    assert not base.context.mounts
    with mount(base, [low]) as mounted:
        for wrong in (stranger, low):
            with pytest.raises((AdapterError, LibraryError)):
                mounted.add(wrong)
        with pytest.raises(LibraryError, match="no expert 'mixed' on base 'tiny'; mounted are low"):
            mounted.remove("mixed")
        assert mounted.capacity == 1 and set(mounted.banks) == set(low.factors)
