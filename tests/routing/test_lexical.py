"""Routing by words alone: a regression that stops at its last step is used as it is, without a warning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from dynamorouter.bench.arms.lexical import fit_classifier
from dynamorouter.routing.base import RouterData, RouterInput
from dynamorouter.routing.lexical import TfIdf


@pytest.fixture
def _one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every logistic regression stop after one step, where scikit-learn warns."""
    fit = LogisticRegression.fit

    def stopped(self: LogisticRegression, *args: Any) -> LogisticRegression:
        self.max_iter = 1
        fit(self, *args)
        assert self.n_iter_.max() == 1
        return self

    monkeypatch.setattr(LogisticRegression, "fit", stopped)


@pytest.mark.usefixtures("_one_step")
def test_a_regression_that_stops_early_warns_nobody() -> None:
    texts = ["shares rose", "a dull film", "shares fell", "a great film"]
    features = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.5], [0.5, 1.0]]
    with pytest.warns(ConvergenceWarning):
        LogisticRegression().fit(features, [0, 1, 0, 1])
    router = TfIdf()
    batch = RouterInput(states={}, mask=torch.ones(4, 1), texts=[(text, None) for text in texts])
    router.fit(RouterData([batch], torch.tensor([0, 1, 0, 1]), generator=torch.Generator(), experts=2))
    assert router.probabilities([("shares", None)]).argmax() == 0
    assert fit_classifier("logistic", features, ["a", "b", "a", "b"]).predict([[1.0, 0.0]]) == ["a"]
