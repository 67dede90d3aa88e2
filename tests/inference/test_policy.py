"""The route policy as a value: no model, no router, only routes and rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dynamorouter.errors import ConfigError, DataError
from dynamorouter.inference.policy import ABSTAINED, BARE, ROUTED, Candidate, RoutePolicy
from dynamorouter.model.text.tokenize import TextPair
from dynamorouter.routing.base import Route

MOOD = Candidate("mood", "sst2")
ASK = Candidate("ask", "squad", reads_pairs=True)
MATCH = Candidate("match", "qqp", reads_pairs=True)
SAY = Candidate("say", "gsm8k", is_generative=True)
SHOUT = Candidate("shout", "mbpp", reads_pairs=True, is_generative=True)
ALL = (MOOD, ASK, MATCH, SAY, SHOUT)
SINGLE, PAIR = ("a text", None), ("a text", "another")


def policy(*candidates: Candidate, classes: tuple[str, ...] | None = None, **options: float | bool) -> RoutePolicy:
    names = tuple(candidate.name for candidate in candidates) if classes is None else classes
    return RoutePolicy(candidates, names, **options)  # type: ignore[arg-type]


def distributions(rows: int, classes: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, classes, generator=generator).mul(3).softmax(dim=1)


def plain_route(own: RoutePolicy, probabilities: list[float], row: TextPair, generate: bool) -> list[float]:
    """The rules of ``narrow`` for one row, said by name and without tensors."""
    by_name = dict(zip(own.classes, probabilities, strict=True))
    chances = normalised({candidate.name: by_name.get(candidate.name, 0.0) for candidate in own.candidates})
    rules = [{candidate.name for candidate in own.candidates if candidate.reads_pairs}] if row[1] is not None else []
    if generate:
        rules.append({candidate.name for candidate in own.candidates if candidate.is_generative})
    for allowed in filter(None, rules):
        chances = normalised({n: max(chance, 1e-12) if n in allowed else 0.0 for n, chance in chances.items()})
    return list(chances.values())


def normalised(chances: dict[str, float]) -> dict[str, float]:
    total = max(sum(chances.values()), 1e-12)
    return {name: chance / total for name, chance in chances.items()}


@given(
    st.permutations(ALL), st.integers(1, 5), st.permutations(ALL), st.integers(1, 3), st.booleans(), st.integers(0, 99)
)
def test_a_route_follows_its_rules_row_by_row(
    fitted: list[Candidate], classes: int, experts: list[Candidate], top_k: int, generate: bool, seed: int
) -> None:
    own = policy(*experts[:4], classes=tuple(candidate.name for candidate in fitted[:classes]))
    rows = [SINGLE, PAIR, SINGLE, PAIR]
    route = Route.from_probabilities(distributions(len(rows), classes, seed), top_k=top_k)
    narrowed = own.narrow(route, rows, generative_only=generate)
    expected = [
        plain_route(own, probabilities, row, generate)
        for probabilities, row in zip(route.probabilities.tolist(), rows, strict=True)
    ]
    torch.testing.assert_close(narrowed.probabilities, torch.tensor(expected), atol=1e-5, rtol=1e-4)
    assert narrowed.experts.shape == (len(rows), min(top_k, classes))
    assert torch.equal(narrowed.confidence, narrowed.probabilities.amax(dim=1))
    best = narrowed.probabilities.gather(1, narrowed.experts)
    assert torch.equal(best, narrowed.probabilities.topk(best.shape[1], dim=1).values)


@given(st.permutations(range(5)), st.booleans(), st.integers(0, 99))
def test_renaming_experts_permutes_the_routes(order: list[int], generate: bool, seed: int) -> None:
    rows = [SINGLE, PAIR, PAIR]
    route = Route.from_probabilities(distributions(len(rows), 5, seed), top_k=2)
    names = tuple(candidate.name for candidate in ALL)
    before = policy(*ALL).narrow(route, rows, generative_only=generate)
    after = policy(*(ALL[i] for i in order), classes=names).narrow(route, rows, generative_only=generate)
    torch.testing.assert_close(after.probabilities, before.probabilities[:, order], atol=1e-6, rtol=1e-5)
    named = torch.tensor(order)[after.experts]
    torch.testing.assert_close(after.weights, before.weights, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(  # equal probabilities may stand in another order
        before.probabilities.gather(1, named), before.probabilities.gather(1, before.experts), atol=1e-6, rtol=1e-5
    )


def test_a_route_that_no_rule_touches_is_left_as_it_is() -> None:
    route = Route.from_probabilities(distributions(2, 2, 0))
    assert policy(MOOD, ASK).narrow(route, [SINGLE, SINGLE]) is route
    assert policy(MOOD, ASK, respects_pairs=False).narrow(route, [PAIR, PAIR]) is route
    assert policy(ASK, MATCH).narrow(route, [PAIR, PAIR]) is route
    assert policy(SAY, SHOUT).narrow(route, [SINGLE, SINGLE], generative_only=True) is route


def test_pairs_leave_the_rows_beside_them_untouched() -> None:
    route = Route.from_probabilities(distributions(2, 3, 1))
    narrowed = policy(MOOD, ASK, MATCH).narrow(route, [SINGLE, PAIR])
    assert torch.equal(narrowed.probabilities[0], route.probabilities[0])
    assert narrowed.probabilities[1, 0] == 0


def test_a_row_is_left_out_below_the_threshold_and_only_there() -> None:
    probabilities = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.5, 0.5]])
    own = policy(MOOD, ASK, abstain_below=0.7)
    route = Route.from_probabilities(probabilities, abstain_below=own.abstain_below)
    assert own.assign(own.narrow(route, [SINGLE] * 3), [ROUTED] * 3).experts == [ABSTAINED, 0, ABSTAINED]
    assert own.narrow(route, [PAIR] * 3).abstained.tolist() == [False] * 3, "one expert is left, and it is certain"
    fewer = policy(ASK, MATCH, classes=("mood", "ask", "match"), abstain_below=0.7)
    three = Route.from_probabilities(torch.tensor([[0.9, 0.06, 0.04], [0.2, 0.7, 0.1]]), abstain_below=0.7)
    assert fewer.narrow(three, [SINGLE] * 2).abstained.tolist() == [True, False], "judged by what is left"


def test_named_rows_are_neither_routed_nor_mixed_nor_doubted() -> None:
    own = policy(MOOD, ASK, MATCH, abstain_below=0.99)
    route = Route.from_probabilities(distributions(3, 3, 2), top_k=2, abstain_below=0.99)
    assignment = own.assign(route, [ROUTED, 2, 1])
    assert list(assignment.experts) == [ABSTAINED, 2, 1]
    assert assignment.mixture is not None
    experts, weights = assignment.mixture
    assert torch.equal(experts[0], route.experts[0]) and torch.equal(weights[0], route.weights[0])
    assert experts[1:, 0].tolist() == [2, 1] and weights[1:].tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert torch.equal(route.weights, Route.from_probabilities(distributions(3, 3, 2), top_k=2).weights), "a copy"
    assert own.assign(Route.from_probabilities(distributions(3, 3, 2)), [ROUTED, 2, 1]).mixture is None


def test_a_router_looks_only_where_there_is_a_choice() -> None:
    assert policy(MOOD, SAY).needs_route([0, ROUTED]) and not policy(MOOD, SAY).needs_route([0, 1])
    assert not policy(MOOD, SAY).needs_route([ROUTED], generative_only=True)
    assert policy(SAY, SHOUT).needs_route([ROUTED], generative_only=True)
    assert policy(MOOD, SAY).assign(None, [ROUTED, 1]).experts == [1, 1]
    assert policy(MOOD, SAY).assign(None, [0, 1]).experts == [0, 1]


def test_experts_are_named_by_themselves_or_by_their_task() -> None:
    own = policy(Candidate("one", "two"), Candidate("two", "three"), SAY)
    assert own.named(["one", "two", "three", None], 4) == [0, 1, 1, ROUTED], "an expert's own name goes first"
    assert own.named(None, 2) == [ROUTED, ROUTED]
    assert own.named(["say", None], 2, generative_only=True) == [2, ROUTED]
    with pytest.raises(DataError, match="3 texts, but 2 tasks"):
        own.named(["one", "two"], 3)
    with pytest.raises(ConfigError, match=r"no expert for task 'on'.*did you mean 'one'.*it has: one, say, two"):
        own.named(["on"], 1)
    with pytest.raises(ConfigError, match="'two' does not generate text; those that do: say"):
        own.named(["say", "two"], 2, generative_only=True)
    with pytest.raises(ConfigError, match="train one with head: causal_lm or seq2seq"):
        policy(MOOD, ASK).named([None], 1, generative_only=True)


def test_classes_are_found_by_name_and_missing_ones_are_named() -> None:
    own = policy(MOOD, ASK, MATCH, classes=("match", "gone", "mood"))
    assert (own.class_of(0), own.class_of(2)) == (2, 0)
    assert own.class_of(1) == -1  # added since the router was fitted


def test_what_is_asked_for_takes_the_place_of_the_routers_own() -> None:
    own = policy(*ALL[:3], abstain_below=0.1)
    route = Route.from_probabilities(torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.06, 0.04]]), abstain_below=0.1)
    rows = [SINGLE, SINGLE]

    def experts(**asked: float | str) -> list[int]:
        changed = own.asked(**asked)  # type: ignore[arg-type]
        return list(changed.assign(changed.narrow(route, rows), [ROUTED, ROUTED]).experts)

    assert experts() == [0, 0]
    assert experts(abstain_below=0.6) == [ABSTAINED, 0] and experts(abstain_below=1.0) == [ABSTAINED, ABSTAINED]
    two = own.asked(top_k=2)
    assignment = two.assign(two.narrow(route, rows), [ROUTED, 2])
    assert assignment.mixture is not None
    torch.testing.assert_close(assignment.mixture[0], torch.tensor([[0, 1], [2, 2]]))
    torch.testing.assert_close(assignment.mixture[1], torch.tensor([[0.625, 0.375], [1.0, 0.0]]))
    for asked in ({"top_k": 4}, {"top_k": 0}, {"abstain_below": 1.5}, {"abstain_below": -0.1}):
        with pytest.raises(ConfigError, match=r"is (4|0|1\.5|-0\.1)[,;].*between"):
            own.asked(**asked)  # type: ignore[arg-type]


def test_the_bare_base_answers_where_it_is_named_or_nobody_else_does() -> None:
    encoders = policy(*ALL[:3])
    for ask in (lambda: encoders.named(["base"], 1), lambda: encoders.asked(fallback="base")):
        with pytest.raises(
            ConfigError, match=r"no base of this system writes a text.*name a task \(ask, match, mood\)"
        ):
            ask()
    own = policy(*ALL, base_writes=True)
    assert own.named(["base", None, "mood"], 3) == [BARE, ROUTED, 0]
    assert own.named(["base", "say"], 2, generative_only=True) == [BARE, 3]
    called_so = policy(Candidate("base", "qqp"), MOOD, base_writes=True)
    assert called_so.named(["base"], 1) == [0]
    route = Route.from_probabilities(torch.tensor([[0.5, 0.3, 0.2, 0, 0]] * 3))
    shy = own.asked(abstain_below=0.6, fallback="base", top_k=2)
    assignment = shy.assign(shy.narrow(route, [SINGLE] * 3), [ROUTED, 0, BARE])
    assert assignment.experts == [BARE, 0, BARE] and assignment.mixture is not None
    assert assignment.mixture[1].tolist() == [[0, 0], [1, 0], [0, 0]]
