"""Arrow's prototypes against a dense SVD, and its scores against a plain loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamorouter.errors import RouterError
from dynamorouter.routing.arrow import Arrow, prototype
from dynamorouter.routing.base import RouterData, RouterInput


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 20), out=st.integers(1, 20), rank=st.integers(1, 24), seed=st.integers(0, 10**6))
def test_prototype_is_the_dense_top_right_singular_vector(width: int, out: int, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, width, generator=generator, dtype=torch.float64)
    b = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    vector = prototype(a, b).double()
    assert float(vector.norm()) == pytest.approx(1.0, abs=1e-6)
    # sign-free, and safe where two singular values are close: it attains the largest stretch
    largest = torch.linalg.svdvals(b @ a)[0]
    assert float((b @ a @ vector).norm()) == pytest.approx(float(largest), rel=1e-5)


def test_prototype_equals_the_vector_itself_where_it_is_unique() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(8, 64, generator=generator), torch.randn(48, 8, generator=generator)
    dense = torch.linalg.svd(b.double() @ a.double()).Vh[0]
    assert float((prototype(a, b).double() @ dense).abs()) == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(prototype(a, -b), prototype(a, b))
    torch.testing.assert_close(prototype(a * 3, b / 7), prototype(a, b))


def test_zero_update_has_a_zero_prototype() -> None:
    assert prototype(torch.randn(2, 5), torch.zeros(4, 2)).tolist() == [0.0] * 5


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(RouterError, match=r"\(2, 5\) and \(4, 3\)"):
        prototype(torch.zeros(2, 5), torch.zeros(4, 3))
    with pytest.raises(RouterError, match="prototypes="):
        Arrow().fit(RouterData([], torch.zeros(0), generator=torch.Generator()))
    with pytest.raises(RouterError, match="give each one"):
        Arrow().fit(
            RouterData([], torch.zeros(0), generator=torch.Generator(), experts=3, prototypes=torch.ones(2, 1, 4))
        )


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_scores_equal_a_plain_loop(reduction: str) -> None:
    generator = torch.Generator().manual_seed(3)
    prototypes = torch.randn(3, 2, 6, generator=generator)
    states = torch.randn(4, 5, 6, generator=generator)
    mask = (torch.arange(5) < torch.tensor([[5], [1], [3], [2]])).long()
    router = Arrow.from_prototypes(prototypes, layer=1, reduction=reduction, standardise=False)
    logits = router.logits(RouterInput({1: states}, mask, [("", None)] * 4))
    for row in range(4):
        for expert in range(3):
            total = 0.0
            for place in range(int(mask[row].sum())):
                both = torch.cosine_similarity(prototypes[expert], states[row, place], dim=1).abs()
                total += float(both.max() if reduction == "max" else both.mean())
            assert float(logits[row, expert]) == pytest.approx(total / int(mask[row].sum()), abs=1e-5)


def test_states_along_an_expert_are_routed_to_it_whatever_their_sign() -> None:
    prototypes = torch.eye(6)[:4].unsqueeze(1)
    states = torch.eye(6)[[3, 1]].unsqueeze(1) * torch.tensor([-9.0, 0.5]).view(2, 1, 1)
    router = Arrow.from_prototypes(prototypes, layer=0)
    assert router.route(RouterInput({0: states}, torch.ones(2, 1), [("", None)] * 2)).experts[:, 0].tolist() == [3, 1]
