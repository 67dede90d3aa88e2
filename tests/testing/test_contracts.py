"""The contracts pass what is built in, and catch what breaks a law."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dynamorouter.bench.arms.base import arms
from dynamorouter.config.tasks import find_task
from dynamorouter.data.sources import sources
from dynamorouter.merging.registry import merge_method, merges
from dynamorouter.metrics.base import Accuracy, metrics
from dynamorouter.model.heads.base import heads
from dynamorouter.model.text.prompts import prompts
from dynamorouter.routing.base import Route, RouterData, RouterInput
from dynamorouter.routing.zero_shot import Centroids
from dynamorouter.tasks.answer import Answer
from dynamorouter.testing import (
    ArmContract,
    HeadContract,
    MergeContract,
    MetricContract,
    PromptContract,
    RouterContract,
    SourceContract,
)

MOOD = find_task("sst2")
MOODS = {
    "task": MOOD,
    "targets": ["positive", "negative", "negative", "positive"],
    "answers": [Answer("classification", word, 0.9) for word in ("positive", "positive", "negative")] + [None],
    "best": [Answer("classification", word, 0.9) for word in ("positive", "negative", "negative", "positive")],
}
SPANS = {
    "task": find_task("squad"),
    "targets": [{"texts": [text, "a " + text], "starts": [0, 0]} for text in ("red fox", "blue sea", "old oak")],
    "answers": [Answer("span", "red fox", 0.9), Answer("span", "sea", 0.9), None],
    "best": [Answer("span", text, 0.9) for text in ("red fox", "a blue sea", "the old oak")],
}
OPEN_SPANS = {
    "task": SPANS["task"],
    "targets": [{"texts": [], "starts": []}, {"texts": ["fox"], "starts": [0]}, {"texts": [], "starts": []}],
    "answers": [Answer("span", "", 0.9), Answer("span", "fox", 0.9), None],
    "best": [Answer("span", text, 0.9) for text in ("", "fox", "")],
}
TAGS = {
    "task": find_task("conll2003"),
    "targets": [["B-PER", "O", "B-LOC"], ["O", "B-ORG", "I-ORG"], ["O", "O", "O"]],
    "answers": [Answer("tags", ["B-PER", "O", "O"], 0.9), Answer("tags", ["B-LOC", "B-ORG", "O"], 0.9), None],
    "best": [Answer("tags", tags, 0.9) for tags in (["B-PER", "O", "B-LOC"], ["O", "B-ORG", "I-ORG"], ["O", "O", "O"])],
}
TEXTS = {
    "task": find_task("xsum"),
    "targets": [{"texts": [text]} for text in ("It costs 12 pounds.", "It rains for 7 days.", "We won 3 games.")],
    "answers": [Answer("text", "It costs 12 pounds.", 1.0, nll=9.0, tokens=5), Answer("text", "No 4", 1.0), None],
    "best": [
        Answer("text", text, 1.0, nll=0.5, tokens=5)
        for text in ("It costs 12 pounds.", "It rains for 7 days.", "We won 3 games.")
    ],
}
ROWS: dict[str, dict[str, Any]] = {"classification": MOODS, "span": SPANS, "tags": TAGS, "text": TEXTS}
NEEDS_MORE = {"pass_at_1", "pass_at_5", "pass_at_10", "lm_loss", "perplexity"}
"""Metrics that run code, or judge losses alone: a row without one is not measured, and has no worst value."""


@pytest.mark.parametrize("law", MetricContract.laws())
@pytest.mark.parametrize("name", sorted(set(metrics) - NEEDS_MORE))
def test_metrics_keep_the_contract(name: str, law: str) -> None:
    metric = metrics.get(name)
    rows = OPEN_SPANS if name == "squad2_no_answer" else ROWS[metric.answer_kind]
    getattr(MetricContract.of(metric=metric, **rows)(), law)()


@pytest.mark.parametrize("law", PromptContract.laws())
@pytest.mark.parametrize("name", sorted(set(prompts) - {"chat"}))
def test_prompts_keep_the_contract(name: str, law: str) -> None:
    getattr(PromptContract.of(form=staticmethod(prompts.get(name)))(), law)()


@pytest.mark.parametrize("law", SourceContract.laws())
def test_the_builtin_source_keeps_the_contract(law: str) -> None:
    getattr(SourceContract.of(source=sources.get("builtin"), task=MOOD)(), law)()


HEADS: dict[str, dict[str, Any]] = {
    "classification": {"labels": ("a", "b"), "targets": [np.array([1]), np.array([0])]},
    "span": {"targets": [np.array([1, 3]), np.array([0, 2])]},
    "tags": {"labels": ("O", "B-X", "I-X"), "targets": [np.array([0, 1, 2, -100, 0, 0]), np.array([1, 0, 0, 0, 1, 2])]},
}


@pytest.mark.parametrize("law", HeadContract.laws())
@pytest.mark.parametrize("name", sorted(HEADS))
def test_heads_keep_the_contract(name: str, law: str) -> None:
    getattr(HeadContract.of(head=heads.get(name), name=name, **HEADS[name])(), law)()


@pytest.mark.parametrize("name", list(arms))
def test_arms_keep_the_contract(name: str) -> None:
    assert ArmContract.of(arm=arms.get(name)).check() == ArmContract.laws()


class Peeking(Centroids):
    """Routes by what its neighbours in the batch are."""

    def route(self, batch: RouterInput) -> Route:
        probabilities = super().route(batch).probabilities
        return self.chosen((probabilities + probabilities.mean(dim=0)) / 2)


class Padded(Centroids):
    """Reads padded positions."""

    def route(self, batch: RouterInput) -> Route:
        return super().route(RouterInput(batch.states, torch.ones_like(batch.mask), batch.texts))


class Forgetful(Centroids):
    """Saves its options and half of its tensors."""

    def state(self) -> Any:
        options, tensors = super().state()
        return options, {**tensors, "mean": torch.zeros_like(tensors["mean"])}


class Global(Centroids):
    """Draws from the global generator."""

    def fit(self, data: RouterData) -> None:
        super().fit(data)
        self.learned["centroids"] = self.learned["centroids"] + 1e-3 * torch.randn(3, 1)


class Favourite(Centroids):
    """Prefers the first expert."""

    def logits(self, batch: RouterInput) -> torch.Tensor:
        return super().logits(batch) + torch.tensor([0.5, 0.0, 0.0])


class Eager(Centroids):
    """Routes before it is fitted."""

    def route(self, batch: RouterInput) -> Route:
        return super().route(batch) if self.learned else self.chosen(torch.full((len(batch), 3), 1 / 3))


@pytest.mark.parametrize(
    ("router", "broken"),
    [
        (Peeking, {"test_a_row_alone_is_routed_as_in_a_batch"}),
        (Padded, {"test_padding_changes_nothing"}),
        (Forgetful, {"test_saved_and_loaded_is_the_same_to_the_bit"}),
        (Global, {"test_the_same_seed_gives_the_same_bits_and_leaves_global_chance_alone"}),
        (Favourite, {"test_renaming_experts_renames_the_routes"}),
        (Eager, {"test_what_is_not_fitted_says_so"}),
    ],
)
def test_a_router_that_breaks_a_law_is_caught(router: type[Centroids], broken: set[str]) -> None:
    suite = RouterContract.of(router=router, options={"examples": 100})
    failed = set()
    for law in suite.laws():
        try:
            getattr(suite(), law)()
        except Exception:
            failed.add(law)
    assert broken <= failed
    with pytest.raises(Exception, match=r".*") as caught:
        suite.check()
    assert any(note.startswith("law of RouterContract: test_") for note in caught.value.__notes__)


def test_a_merge_that_claims_too_much_is_caught() -> None:
    @merge_method("only_for_this_test", paper="none", weights="ones")
    def summed(deltas: Any, weights: Any) -> Any:
        """Add up."""
        return deltas.weighted(weights)

    try:
        with pytest.raises(AssertionError, match="claims that identical experts, with the default weights, come back"):
            MergeContract.of(method=summed).check()
    finally:
        del merges._entries["only_for_this_test"], merges._homes["only_for_this_test"]


class NotASum(Accuracy):
    """Rounds each value, so that many sums are not reduced alike."""

    def reduce(self, sums: Any) -> Any:
        return super().reduce(sums) if sums.ndim == 1 else super().reduce(sums).round()


def test_a_metric_that_is_no_function_of_sums_is_caught() -> None:
    with pytest.raises(AssertionError):
        MetricContract.of(metric=NotASum, **MOODS)().test_many_sums_are_reduced_at_once()


def test_a_prompt_that_formats_the_row_is_caught() -> None:
    def format_row(text: str, pair: str | None, tokenizer: Any) -> str:
        return ("Q: " + text + (pair or "")).format("")

    with pytest.raises((AssertionError, KeyError)):
        PromptContract.of(form=staticmethod(format_row)).check()


def test_an_attribute_that_a_contract_does_not_have_is_named() -> None:
    with pytest.raises(TypeError, match="RouterContract has no attribute 'routers'"):
        RouterContract.of(routers=Centroids)
