"""Classical classifiers over counted words: logistic regression and naive Bayes, with the features that decide.

Texts are TF-IDF of words and pairs of words (Salton and Buckley, 1988), a pair's two texts kept apart; words to be
tagged are described by themselves, their form and their neighbours, as in maximum-entropy taggers (Ratnaparkhi, 1996).
Texts that are matched as a whole are labels too. Spans and longer texts have no such classifier, and so no row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynamorouter.bench.arms.base import Arm, arms
from dynamorouter.bench.experiment import Experiment
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.kinds import head_kind
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task
from dynamorouter.utils.quiet import without_warning

TOP = 10
"""Features noted for each label."""
KINDS = ("logistic", "bayes")


@arms.register("words")
class Words(Arm):
    """One classifier for each task, over its words alone."""

    about = "TF-IDF (words to be tagged: their form and neighbours) with logistic regression or naive Bayes"

    @classmethod
    def variants(cls, tasks: Sequence[str]) -> list[str]:
        """Return the two classifiers."""
        return list(KINDS)

    def applies(self, task: Task) -> bool:
        """Tell whether there are labels to choose from, or texts that are matched as labels are."""
        return head_kind(task.head).classes is not None or task.metrics[0] == "text_match"

    def fit(self, experiment: Experiment) -> None:
        """Fit a classifier for each task on the experts' own train rows."""
        self.facts.work = 0.0
        tasks = [task.name for task in experiment.tasks if self.applies(task)]
        self.facts.train_rows = sum(len(experiment.rows("train", name)) for name in tasks)
        self._fitted = {name: self._fit(experiment, name) for name in tasks}
        self.facts.parameters = sum(len(names) * len(model.classes_) for _, model, names in self._fitted.values())

    def _fit(self, experiment: Experiment, task: str) -> tuple[Any, Any, Any]:
        records, kind = experiment.rows("train", task), head_kind(experiment.expert(task).task.head)
        if kind.classes == "word":
            features = _tag_features()
            inputs: list[Any] = [described for record in records for described in word_features(record.text.split())]
            classes = [str(tag) for record in records if isinstance(record.target, list) for tag in record.target]
        else:
            features = _text_features(pairs=any(record.pair for record in records))
            inputs = [_columns(record) for record in records]
            classes = [str(kind.class_of(record.target)) for record in records]
        model = fit_classifier(self.variant, features.fit_transform(inputs), classes)
        return features, model, features.get_feature_names_out()

    def prepare(self, experiment: Experiment, task: str) -> None:
        """Take up a task's classifier."""
        self._features, self._model, names = self._fitted[task]
        self.facts.options = {"features": len(names)}
        self.facts.notes = {"top_features": self._top(names)}

    def answer(self, experiment: Experiment, task: str) -> list[Answer | None]:
        """Label each row, or each of its words."""
        records, kind = experiment.rows("test", task), head_kind(experiment.expert(task).task.head)
        if kind.classes != "word":
            chances = self._model.predict_proba(self._features.transform([_columns(record) for record in records]))
            labels = self._model.classes_[chances.argmax(axis=1)]
            return [
                Answer(kind.answer_kind, str(label), float(p))
                for label, p in zip(labels, chances.max(axis=1), strict=True)
            ]
        answers: list[Answer | None] = []
        for record in records:
            words = record.text.split()
            chances = self._model.predict_proba(self._features.transform(word_features(words)))
            tags = [str(tag) for tag in self._model.classes_[chances.argmax(axis=1)]]
            answers.append(Answer(kind.answer_kind, tags, float(np.exp(np.log(chances.max(axis=1)).mean()))))
        return answers

    def _top(self, names: Any) -> dict[str, list[str]]:
        """Return the features that speak most for each label, against the mean of the others."""
        if self.variant == "bayes":
            weights = self._model.feature_log_prob_
        else:
            weights = self._model.coef_
            weights = np.concatenate([-weights, weights]) if len(weights) == 1 else weights
        total = weights.sum(axis=0)
        mean_of_others = (total - weights) / max(1, len(weights) - 1)
        order = np.argsort(-(weights - mean_of_others), axis=1, kind="stable")[:, :TOP]
        return {
            str(label): [str(names[i]) for i in row] for label, row in zip(self._model.classes_, order, strict=True)
        }


def fit_classifier(kind: str, features: Any, classes: Sequence[str]) -> Any:
    """Fit ``logistic`` regression or naive ``bayes`` on the features of rows, ``(N, F)``, and their classes."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import MultinomialNB

    classifier = LogisticRegression(C=10.0, max_iter=1000) if kind == "logistic" else MultinomialNB(alpha=0.1)
    with without_warning(ConvergenceWarning, "lbfgs failed to converge"):  # close enough after so many steps
        return classifier.fit(features, classes)


def _text_features(*, pairs: bool) -> Any:
    """Return TF-IDF of words and pairs of words; of two texts each in columns of its own."""
    from sklearn.compose import ColumnTransformer
    from sklearn.feature_extraction.text import TfidfVectorizer

    def tfidf() -> Any:
        return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")

    columns = [("first", tfidf(), 0)] + ([("second", tfidf(), 1)] if pairs else [])
    return ColumnTransformer(columns, verbose_feature_names_out=pairs)


def _tag_features() -> Any:
    from sklearn.feature_extraction import DictVectorizer

    return DictVectorizer()


def _columns(record: Record) -> list[str]:
    return [record.text, record.pair or ""]


def word_features(words: Sequence[str]) -> list[Mapping[str, float]]:
    """Describe each word by itself, its ends, its form and its neighbours."""
    low = ["<s>", *(word.lower() for word in words), "</s>"]
    described: list[Mapping[str, float]] = []
    for i, word in enumerate(words):
        form = re.sub(r"(.)\1+", r"\1", re.sub(r"[a-z]", "a", re.sub(r"[A-Z]", "A", re.sub(r"[0-9]", "0", word))))
        names = (
            f"word={low[i + 1]}",
            f"before={low[i]}",
            f"after={low[i + 2]}",
            f"form={form}",
            f"begin={low[i + 1][:3]}",
            f"end={low[i + 1][-3:]}",
            "first" if i == 0 else "inside",
        )
        described.append(dict.fromkeys(names, 1.0))
    return described
