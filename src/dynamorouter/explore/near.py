"""Near-duplicates by MinHash and banding (Broder, 1997), each candidate checked by its exact Jaccard similarity.

Letters: N texts, H hash functions. A text is the set of its runs of three words, after folding of case, punctuation and
spaces. Two texts are near-duplicates where their sets overlap by at least ``SIMILAR``; clusters are their transitive
closure. With 64 functions in 16 bands a pair at the threshold is missed with a chance of 1.2 %, one at .8 of 0.02 %.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dynamorouter.tasks.text import normalise

SIMILAR = 0.7
RUN, BANDS, PER_BAND = 3, 16, 4
_ALL_PAIRS = 40
"""Texts in one bucket that are compared each with each; further ones are compared with these."""

Hashes = NDArray[np.uint64]


def clusters(texts: Sequence[str], *, similar: float = SIMILAR, seed: int = 0) -> NDArray[np.int64]:
    """Return for each text the number of the first text of its cluster, ``(N,)``; alone it is its own.

    Args:
        texts: any; texts without a word are left alone.
        similar: least Jaccard similarity of near-duplicates, above .5.
        seed: of the hash functions.
    """
    sets = shingles(texts)
    parent = list(range(len(texts)))
    worded = [i for i, hashes in enumerate(sets) if len(hashes)]
    if len(worded) > 1:
        signatures = _signatures([sets[i] for i in worded], seed)
        for first, second in _candidates(signatures):
            left, right = worded[first], worded[second]
            # The roots alone would not do: of two clusters any two members may be the similar ones.
            if _root(parent, left) != _root(parent, right) and _jaccard(sets[left], sets[right]) >= similar:
                low, high = sorted((_root(parent, left), _root(parent, right)))
                parent[high] = low
    return np.array([_root(parent, i) for i in range(len(texts))], dtype=np.int64)


def shingles(texts: Sequence[str]) -> list[Hashes]:
    """Return the sorted different hashes of each text's runs of three words; a shorter text is one run."""
    ids: dict[str, int] = {}
    sets = []
    for text in texts:
        word_ids = np.array([ids.setdefault(word, len(ids) + 1) for word in normalise(text).split()], dtype=np.uint64)
        count = max(1, len(word_ids) - RUN + 1) if len(word_ids) else 0
        mixed = np.zeros(count, dtype=np.uint64)
        for shift in range(min(RUN, len(word_ids))):
            mixed = _mix(mixed + word_ids[shift : shift + count])
        sets.append(np.unique(mixed))
    return sets


def _mix(values: Hashes) -> Hashes:
    """Scramble 64-bit numbers one to one (the finaliser of splitmix64)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _signatures(sets: Sequence[Hashes], seed: int) -> Hashes:
    """Return the least hash of each set under each function, ``(N, H)``; no set is empty."""
    flat = np.concatenate(list(sets))
    starts = np.concatenate([[0], np.cumsum([len(hashes) for hashes in sets])[:-1]])
    keys = np.random.default_rng(seed).integers(1, 2**63, size=BANDS * PER_BAND, dtype=np.uint64)
    return np.stack([np.minimum.reduceat(_mix(flat ^ key), starts) for key in keys], axis=1)


def _candidates(signatures: Hashes) -> NDArray[np.int64]:
    """Return pairs of texts that agree in a whole band, ``(pairs, 2)``, each pair once."""
    total = len(signatures)
    coded_pairs: list[NDArray[np.int64]] = []
    for band in range(BANDS):
        columns = signatures[:, band * PER_BAND : (band + 1) * PER_BAND]
        keys = columns[:, 0].copy()
        for column in range(1, PER_BAND):
            keys = _mix(keys ^ columns[:, column])
        order = np.argsort(keys, kind="stable")
        edges = np.flatnonzero(np.diff(keys[order])) + 1
        for bucket in np.split(order, edges):
            if len(bucket) > 1:
                coded_pairs.append(_pairs(np.sort(bucket), total))
    if not coded_pairs:
        return np.empty((0, 2), dtype=np.int64)
    coded = np.unique(np.concatenate(coded_pairs))
    return np.stack([coded // total, coded % total], axis=1)


def _pairs(bucket: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Return the pairs of a bucket's members, smaller first, coded as one number each."""
    count = len(bucket)
    leading = np.arange(min(_ALL_PAIRS, count - 1))
    first = np.repeat(leading, count - 1 - leading)
    second = np.concatenate([np.arange(lead + 1, count) for lead in leading])
    return np.asarray(bucket[first] * total + bucket[second])


def _jaccard(one: Hashes, two: Hashes) -> float:
    if 2 * min(len(one), len(two)) < max(len(one), len(two)):
        return 0.0  # so different in size that the overlap is below one half
    both = len(np.intersect1d(one, two, assume_unique=True))
    return both / (len(one) + len(two) - both)


def _root(parent: list[int], index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index
