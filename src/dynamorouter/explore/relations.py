"""Does length tell anything? Correlations of lengths, and a classifier that sees nothing but lengths.

Letters: N rows, T resamples. Intervals are percentile bootstraps over rows. Ranks are taken anew in every resample:
values that tie share the mean of their ranks, and a row that is drawn twice ties with itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamorouter.explore.lengths import words
from dynamorouter.explore.rows import TaskRows, labels
from dynamorouter.metrics.base import mean
from dynamorouter.metrics.bootstrap import Array, bootstrap_ci, bootstrap_difference

RESAMPLES = 1000
LEAVES, LEAST = 32, 20
_FEWEST = 10


def correlations(first: NDArray[Any], second: NDArray[Any], *, seed: int, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Return Pearson's and Spearman's correlation of two columns ``(N,)``, each with a 95 % interval.

    A column without any spread, or fewer than ten rows, has no correlation: the values are ``None``.
    """
    left, right = first.astype(float), second.astype(float)
    if len(left) < _FEWEST or np.ptp(left) == 0 or np.ptp(right) == 0:
        return {"n": len(left), "pearson": None, "spearman": None}
    generator = np.random.default_rng(seed)
    share = np.full(len(left), 1.0 / len(left))
    places = [np.unique(column, return_inverse=True)[1] for column in (left, right)]
    resampled = np.empty((resamples, 2))
    for turn in range(resamples):
        counts = generator.multinomial(len(left), share).astype(float)
        resampled[turn] = _pearson(left, right, counts), _spearman(places[0], places[1], counts)
    once = np.ones(len(left))
    values = _pearson(left, right, once), _spearman(places[0], places[1], once)
    low, high = np.nanquantile(resampled, [0.025, 0.975], axis=0)
    return {
        "n": len(left),
        **{
            name: {"value": float(values[i]), "ci95": [float(low[i]), float(high[i])]}
            for i, name in enumerate(("pearson", "spearman"))
        },
    }


def _pearson(one: Array, two: Array, counts: Array) -> float:
    """Return the correlation of rows that occur ``counts`` times; not a number where a column has no spread."""
    total = counts.sum()
    left, right = one - counts @ one / total, two - counts @ two / total
    spread = np.sqrt((counts @ left**2) * (counts @ right**2))
    return float(counts @ (left * right) / spread) if spread > 0 else float("nan")


def _spearman(first: NDArray[np.int64], second: NDArray[np.int64], counts: Array) -> float:
    return _pearson(_ranks(first, counts), _ranks(second, counts), counts)


def _ranks(places: NDArray[np.int64], counts: Array) -> Array:
    """Return mid-ranks of values, given by their place among the different ones, that occur ``counts`` times."""
    per_value = np.bincount(places, weights=counts)
    ranks = np.cumsum(per_value) - (per_value - 1.0) / 2.0
    return np.asarray(ranks[places])


def length_relations(rows: TaskRows, *, seed: int, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Return the correlations of the lengths of a row's parts: text with pair, and text with what it asks for."""
    parts = words(rows)
    relations = {}
    for first, second in (("text", "target"), ("input", "target"), ("text", "pair")):
        if first in parts and second in parts:
            relations[f"{first}/{second}"] = correlations(parts[first], parts[second], seed=seed, resamples=resamples)
    return relations


def length_classifier(rows: TaskRows, *, seed: int, resamples: int = RESAMPLES) -> dict[str, Any] | None:
    """Fit a small decision tree on lengths alone (words and characters of text and pair) and score it on other rows.

    It is fitted on train and scored on the other splits; where there are none, on one half and scored on the other.

    Returns:
        Accuracy of the tree and of always saying the commonest class of its training rows, their difference with a
        paired 95 % interval, and the median length in words of each class; ``None`` for tasks without classes.
    """
    from sklearn.tree import DecisionTreeClassifier

    records = rows.records
    row_classes = labels(rows.task, records)
    if row_classes is None or len(set(row_classes)) < 2:
        return None
    classes = np.array(row_classes)
    features = np.stack([column for part in ("text", "pair") for column in _columns(records, part)], axis=1)
    fitted = _fitted(rows, len(records), seed)
    if len(set(classes[fitted])) < 2 or fitted.all():
        return None
    tree = DecisionTreeClassifier(max_leaf_nodes=LEAVES, min_samples_leaf=LEAST, random_state=seed)
    tree.fit(features[fitted], classes[fitted])
    held_out = ~fitted
    names, counts = np.unique(classes[fitted], return_counts=True)
    ours = _scored(tree.predict(features[held_out]) == classes[held_out])
    majority = _scored(classes[held_out] == names[counts.argmax()])
    gain = bootstrap_difference(ours, majority, mean, seed=seed, resamples=resamples)
    lengths = words(rows)["input" if "input" in words(rows) else "text"]
    return {
        "fitted_on": int(fitted.sum()),
        "n": int(held_out.sum()),
        "accuracy": {"value": float(ours[:, 0].mean()), "ci95": bootstrap_ci(ours, mean, seed=seed)},
        "majority": float(majority[:, 0].mean()),
        "gain": {"value": gain.value, "ci95": [gain.low, gain.high]},
        "median_words": {str(name): float(np.median(lengths[classes == name])) for name in names},
    }


def _columns(records: Sequence[Any], part: str) -> list[NDArray[np.int64]]:
    texts = [getattr(record, part) or "" for record in records]
    return [np.array([len(text.split()) for text in texts]), np.array([len(text) for text in texts])]


def _fitted(rows: TaskRows, total: int, seed: int) -> NDArray[np.bool_]:
    """Return which rows the classifier is fitted on, ``(N,)``, in the order of ``rows.records``."""
    if len(rows.splits) > 1 and "train" in rows.splits:
        return np.concatenate([np.full(len(records), split == "train") for split, records in rows.splits.items()])
    return np.random.default_rng(seed).permutation(total) < total // 2


def _scored(right: NDArray[np.bool_]) -> Array:
    """Return row statistics of an accuracy, ``(N, 2)``."""
    return np.stack([right.astype(float), np.ones(len(right))], axis=1)
