"""The lexical baseline: TF-IDF of word 1- and 2-grams into logistic regression.

The classical text classifier (Salton and Buckley, 1988, "Term-Weighting Approaches in Automatic Text Retrieval");
it reads the words of a row and no hidden state.

Letters: N rows, B batch, V vocabulary, E experts, C experts that were seen in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from dynamorouter.errors import RouterError
from dynamorouter.routing.base import Route, RouterData, RouterInput
from dynamorouter.routing.learned import FittedRouter
from dynamorouter.routing.registry import routers
from dynamorouter.utils.options import Count, Rate
from dynamorouter.utils.quiet import without_warning


def joined(texts: Sequence[tuple[str, str | None]]) -> list[str]:
    """Return each row as one run of text, its pair after a space."""
    return [text if pair is None else f"{text} {pair}" for text, pair in texts]


@routers.register("tfidf")
@dataclass(kw_only=True, eq=False)
class TfIdf(FittedRouter):
    """Logistic regression over TF-IDF; an expert without a training row has probability zero.

    Args:
        max_features: most frequent terms kept, V at most.
        min_rows: a term in fewer rows is left out.
        inverse_regularisation: C of the logistic regression.
        top_k: experts per row.
        abstain_below: a confidence below this marks the row as abstained.

    Raises:
        RouterError: an option is out of range.
    """

    max_features: Count = 50_000
    min_rows: Count = 1
    inverse_regularisation: Rate = 10.0
    _vectorizer: Any = field(default=None, init=False, repr=False)

    def fit(self, data: RouterData) -> None:
        """Fit vocabulary, weights of terms, and the regression; nothing is left to chance.

        Raises:
            RouterError: no row holds a word.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        count, targets = data.count_experts(), data.targets.cpu()
        texts = joined([row for batch in data.inputs for row in batch.texts])
        vectorizer = self._new_vectorizer(max_features=self.max_features, min_df=self.min_rows)
        try:
            terms = vectorizer.fit_transform(texts)
        except ValueError as error:
            raise RouterError(
                f"the tfidf router found no words in {len(texts)} rows ({error}); give rows with words"
            ) from error
        weights = torch.zeros(count, terms.shape[1], dtype=torch.float64)
        bias = torch.full((count,), -torch.inf, dtype=torch.float64)
        experts_with_rows = torch.bincount(targets, minlength=count).nonzero().squeeze(1)
        if len(experts_with_rows) > 1:
            model = LogisticRegression(C=self.inverse_regularisation, max_iter=1000)
            with without_warning(ConvergenceWarning, "lbfgs failed to converge"):  # close enough after so many steps
                model.fit(terms, targets.numpy())
            # with two classes scikit-learn keeps one row, the logit of the second over the first
            pad = len(experts_with_rows) == 2
            coef = np.concatenate([np.zeros_like(model.coef_), model.coef_]) if pad else model.coef_
            intercept = np.concatenate([[0.0], model.intercept_]) if pad else model.intercept_
            weights[experts_with_rows] = torch.from_numpy(coef)
            bias[experts_with_rows] = torch.from_numpy(intercept)
        else:
            bias[experts_with_rows] = 0.0
        idf = torch.from_numpy(np.array(vectorizer.idf_, dtype=np.float64))
        self._vectorizer, self.learned = vectorizer, {"weights": weights, "bias": bias, "idf": idf}

    @staticmethod
    def _new_vectorizer(**options: Any) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", **options)

    def probabilities(self, texts: Sequence[tuple[str, str | None]]) -> Tensor:
        """Return the probability of each expert, ``(B, E)`` float64.

        Raises:
            RouterError: the router is not fitted.
        """
        weights, bias = self.need("weights"), self.need("bias")
        terms = self._vectorizer.transform(joined(texts))
        logits = torch.from_numpy(np.asarray(terms @ weights.numpy().T)) + bias
        return logits.softmax(dim=1)

    def route(self, batch: RouterInput) -> Route:
        """Return the route of every row (see ``Router.route``)."""
        probabilities = self.probabilities(batch.texts).float().to(batch.mask.device)
        return self.chosen(probabilities)

    def to(self, device: torch.device | str) -> Self:
        """Stay on the processor, where the words are counted."""
        return self

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the options with the vocabulary in the order of its columns, and the numbers."""
        options, tensors = super().state()
        return {**options, "vocabulary": self._vectorizer.get_feature_names_out().tolist()}, tensors

    @classmethod
    def restore(cls, options: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild a router from what ``state`` returned."""
        constructor_options = dict(options)
        vocabulary = {str(term): column for column, term in enumerate(constructor_options.pop("vocabulary"))}
        router = super().restore(constructor_options, tensors)
        router._vectorizer = cls._new_vectorizer(vocabulary=vocabulary)
        router._vectorizer.idf_ = tensors["idf"].numpy()
        return router
