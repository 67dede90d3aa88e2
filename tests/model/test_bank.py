"""Laws of the bank: PEFT's outputs and gradients, rows kept apart, padding exact, nothing frozen trained."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynamorouter.errors import BankShapeError
from dynamorouter.model.lora.bank import LoraBank
from dynamorouter.model.lora.factors import Factors
from dynamorouter.model.lora.gates import RowGate, SoftGate
from support.banks import EXPERTS, OUT, WIDTH, make_bank, pass_over


def slow(bank: LoraBank, x: Tensor, dense: Tensor) -> Tensor:
    """The plain reference: every row through a dense sum of its experts' deltas, ``dense`` being ``(B, S, E)``."""
    delta = torch.einsum("eor,erd,e->eod", bank.b, bank.a, bank.scaling)
    return bank.base(x) + torch.einsum("bse,eod,bsd->bso", dense, delta, x)


def one_hot(ids: Tensor, weights: Tensor, positions: int) -> Tensor:
    dense = torch.zeros(ids.shape[0], EXPERTS + 1, dtype=weights.dtype)
    dense.scatter_add_(1, ids.where(ids >= 0, EXPERTS), weights)
    return dense[:, None, :EXPERTS].expand(-1, positions, -1)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("grad", [False, True])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_row_gate_equals_dense_reference(kind: str, grad: bool, data: st.DataObject) -> None:
    bank = make_bank(kind)
    rows, positions, chosen = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    ids = torch.tensor(
        data.draw(
            st.lists(
                st.lists(st.integers(-1, EXPERTS - 1), min_size=chosen, max_size=chosen), min_size=rows, max_size=rows
            )
        )
    )
    weights = torch.rand(rows, chosen, dtype=torch.float64) if data.draw(st.booleans()) else None
    x = torch.randn(rows, positions, WIDTH, dtype=torch.float64)
    with torch.set_grad_enabled(grad), pass_over(bank).hold(RowGate(ids, weights)):
        got = bank(x)
    whole = weights if weights is not None else torch.ones(rows, chosen, dtype=torch.float64)
    torch.testing.assert_close(got, slow(bank, x, one_hot(ids, whole, positions)))


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("positions", [1, 3])
@pytest.mark.parametrize("ids", [[[2], [2], [2]], [[0], [-1], [4]], [[0, 1], [3, -1], [2, 2]]])
def test_cached_and_selected_gates_equal_dense_reference(kind: str, positions: int, ids: list[list[int]]) -> None:
    bank, chosen = make_bank(kind), torch.tensor(ids)
    x = torch.randn(3, positions, WIDTH, dtype=torch.float64)
    for weights in (None, torch.rand(chosen.shape, dtype=torch.float64)):
        whole = torch.ones(chosen.shape, dtype=torch.float64) if weights is None else weights
        want = slow(bank, x, one_hot(chosen, whole, positions))
        gate = RowGate(chosen, weights)
        cached, rows = gate.cached(), torch.tensor([2, 0])
        with torch.no_grad():
            for _ in range(2):
                with pass_over(bank).hold(cached):
                    torch.testing.assert_close(bank(x), want)
            with pass_over(bank).hold(cached.select(rows)):
                torch.testing.assert_close(bank(x[rows]), want[rows])
        assert gate.cache is None and bool(cached.cache) == (positions == 1 and cached.single is None)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_soft_gate_equals_dense_reference(per_token: bool, grad: bool) -> None:
    bank = make_bank()
    x = torch.randn(3, 4, WIDTH, dtype=torch.float64)
    weights = torch.rand(3, 4, EXPERTS, dtype=torch.float64) if per_token else torch.rand(3, EXPERTS).double()
    weights[..., 2] = 0
    with torch.set_grad_enabled(grad), pass_over(bank).hold(SoftGate(weights)):
        got = bank(x)
    dense = weights if per_token else weights[:, None].expand(-1, 4, -1)
    torch.testing.assert_close(got, slow(bank, x, dense))


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_gradients_equal_the_reference(kind: str) -> None:
    bank = make_bank(kind)
    x = torch.randn(4, 3, WIDTH, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(4, 2, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0, 3], [3, -1], [1, 1], [-1, -1]])
    out = torch.randn(4, 3, OUT, dtype=torch.float64)
    wanted = [x, weights, bank.a, bank.b]
    with pass_over(bank).hold(RowGate(ids, weights)):
        fast = torch.autograd.grad((bank(x) * out).sum(), wanted)
    plain = torch.autograd.grad((slow(bank, x, one_hot(ids, weights, 3)) * out).sum(), wanted)
    for got, want in zip(fast, plain, strict=True):
        torch.testing.assert_close(got, want)


def test_gradient_reaches_the_rows_own_expert_and_nothing_frozen() -> None:
    bank = make_bank()
    with pass_over(bank).hold(RowGate(torch.tensor([1, -1, 1]))):
        bank(torch.randn(3, 2, WIDTH, dtype=torch.float64)).square().sum().backward()
    assert bank.a.grad is not None and bank.b.grad is not None
    touched = bank.a.grad.flatten(1).abs().sum(1).ne(0) | bank.b.grad.flatten(1).abs().sum(1).ne(0)
    assert touched.tolist() == [False, True, False, False, False]
    assert bank.base.weight.grad is None and bank.base.bias.grad is None


def test_dropout_acts_on_the_experts_input_alone_and_per_row() -> None:
    bank = make_bank()
    x = torch.randn(2, 500, WIDTH, dtype=torch.float64)
    with pass_over(bank).hold(RowGate(torch.tensor([0, 0])), dropout=torch.tensor([0.0, 0.9])):
        dropped = bank(x)
    with pass_over(bank).hold(RowGate(torch.tensor([0, 0]))):
        kept = bank(x)
    torch.testing.assert_close(dropped[0], kept[0])
    assert not torch.allclose(dropped[1], kept[1])
    with pass_over(bank).hold(None):
        base = bank(x)
    change, dropped_change = kept[1] - base[1], dropped[1] - base[1]
    torch.testing.assert_close(dropped_change.mean(0), change.mean(0), atol=1.5, rtol=0)  # unbiased


def test_padding_a_rank_with_zeros_is_exact() -> None:
    bank = make_bank()
    small = Factors(torch.randn(1, WIDTH).double(), torch.randn(OUT, 1).double(), 0.7)
    bank.put(2, small)
    x = torch.randn(1, 2, WIDTH, dtype=torch.float64)
    with torch.no_grad(), pass_over(bank).hold(RowGate(torch.tensor([2]))):
        got = bank(x)
    torch.testing.assert_close(got, bank.base(x) + x @ small.a.T @ small.b.T * bank.scaling[2])
    back = bank.get(2, 1)
    torch.testing.assert_close((back.a, back.b), (small.a, small.b))


def test_no_gate_is_the_bare_layer_to_the_bit() -> None:
    bank = make_bank()
    x = torch.randn(2, 3, WIDTH, dtype=torch.float64)
    assert torch.equal(bank(x), bank.base(x))
    with pass_over(bank).hold(RowGate(torch.tensor([-1, -1]))):
        assert torch.equal(bank(x), bank.base(x))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda bank: bank.put(0, Factors(torch.ones(9, WIDTH), torch.ones(OUT, 9), 1.0), name="q"),
            "rank 9.*'q'.*rank 3",
        ),
        (lambda bank: bank.put(0, Factors(torch.ones(2, 7), torch.ones(OUT, 2), 1.0), name="q"), "another base"),
        (lambda bank: run(bank, RowGate(torch.tensor([0]))), "1 rows.*batch has 2"),
        (lambda bank: run(bank, RowGate(torch.tensor([0, 9]))), "expert 9.*holds 5"),
        (lambda bank: run(bank, SoftGate(torch.ones(2, 3))), "weighs 3 experts.*holds 5"),
        (lambda bank: RowGate(torch.tensor([0, 1]), torch.ones(3)), "one weight per chosen expert"),
        (lambda bank: SoftGate(torch.ones(2)), "soft gate is"),
    ],
)
def test_wrong_shapes_are_named(call: Callable[[LoraBank], object], words: str) -> None:
    with pytest.raises(BankShapeError, match=words):
        call(make_bank())


def run(bank: LoraBank, gate: RowGate | SoftGate) -> Tensor:
    with pass_over(bank).hold(gate):
        return bank(torch.ones(2, 1, WIDTH, dtype=torch.float64))  # type: ignore[no-any-return]
