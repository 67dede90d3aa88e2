"""How long the rows are, how many a window cuts off, and how evenly the classes are spread."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamorouter.explore.rows import TaskRows, labels, target_text, word_count
from dynamorouter.tasks.kinds import head_kind
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task

Ints = NDArray[np.int64]
Tokenizer = Callable[..., Any]
"""Called as a ``transformers`` tokenizer is, with texts, pairs and ``truncation=False``."""
QUANTILES = {"min": 0.0, "p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99, "max": 1.0}
BALANCED, NEARLY = 1.25, 2.0
"""Largest over smallest class: up to the first a task is called balanced, up to the second nearly so."""
_BATCH = 512


def words(rows: TaskRows) -> dict[str, Ints]:
    """Return lengths in words by part: ``text``, and where there are any ``pair``, ``input`` (both) and ``target``."""
    records = rows.records
    lengths = {"text": np.array([word_count(record.text) for record in records])}
    if any(record.pair is not None for record in records):
        lengths["pair"] = np.array([word_count(record.pair) for record in records])
        lengths["input"] = lengths["text"] + lengths["pair"]
    if target_text(records[0]) is not None:
        lengths["target"] = np.array([word_count(target_text(record)) for record in records])
    return lengths


def summary(values: Ints) -> dict[str, float]:
    """Return mean, standard deviation and quantiles (the smallest value that this share does not exceed)."""
    ordered = np.sort(values)
    quantiles = {name: int(ordered[max(0, math.ceil(share * len(ordered)) - 1)]) for name, share in QUANTILES.items()}
    return {"mean": float(values.mean()), "sd": float(values.std()), **quantiles}


def tokens(records: Sequence[Record], tokenizer: Tokenizer, *, target: bool = False) -> Ints:
    """Return the rows' lengths in tokens, special tokens included; of the texts asked for with ``target``."""
    lengths: list[int] = []
    for start in range(0, len(records), _BATCH):
        batch = records[start : start + _BATCH]
        if target:
            texts, pairs = [target_text(record) or "" for record in batch], None
        else:
            texts = [record.text for record in batch]
            pairs = [record.pair or "" for record in batch] if any(record.pair for record in batch) else None
        lengths += [len(ids) for ids in tokenizer(texts, pairs, truncation=False)["input_ids"]]
    return np.array(lengths)


def truncation(rows: TaskRows, tokenizer: Tokenizer | None, *, max_tokens: int | None = None) -> dict[str, Any]:
    """Return how many rows a window cuts off.

    Args:
        rows: of one task.
        tokenizer: what counts; ``None`` counts words, of which there are fewer than tokens.
        max_tokens: the window; the task's own by default.

    Returns:
        ``unit``, ``window``, ``cut`` (share of rows longer than the window) and ``lengths``; for texts to be written
        also ``with_target``: the share whose input and target together are longer.
    """
    records, window = rows.records, max_tokens or rows.task.max_tokens
    writes = head_kind(rows.task.head).is_generative
    if tokenizer is None:
        parts = words(rows)
        lengths = parts.get("input", parts["text"])
        answers = parts.get("target") if writes else None
    else:
        lengths = tokens(records, tokenizer)
        answers = tokens(records, tokenizer, target=True) if writes else None
    unit = "words" if tokenizer is None else "tokens"
    report = {"unit": unit, "window": window, "cut": float((lengths > window).mean()), "lengths": summary(lengths)}
    if answers is not None:
        report["with_target"] = float((lengths + answers > window).mean())
    return report


def balance(rows: TaskRows) -> dict[str, Any] | None:
    """Return the classes' shares.

    Returns:
        ``counts`` by split, ``shares`` over all splits, ``ratio`` of the largest to the smallest class, ``evenness``
        (entropy over that of equal shares, 0 to 1) and ``verdict``; ``None`` for tasks without classes. The classes of
        a tags task are its entity types, counted by entity.
    """
    by_split = {split: _classes(rows.task, records) for split, records in rows.splits.items()}
    if any(counts is None for counts in by_split.values()):
        return None
    total = Counter[str]()
    for counts in by_split.values():
        total.update(counts or {})
    count_of = {label: total[label] for label in (*rows.task.labels, *sorted(total)) if label in total}
    if head_kind(rows.task.head).classes == "row":
        count_of = {label: total[label] for label in rows.task.labels}
    shares = np.array(list(count_of.values()), dtype=float) / max(1, sum(count_of.values()))
    present = shares[shares > 0]
    entropy = float(-(present * np.log(present)).sum())
    ratio = float(shares.max() / shares.min()) if len(shares) and shares.min() > 0 else math.inf
    return {
        "counts": {split: dict(sorted((counts or {}).items())) for split, counts in by_split.items()},
        "shares": {label: float(share) for label, share in zip(count_of, shares, strict=True)},
        "ratio": ratio if math.isfinite(ratio) else None,
        "evenness": entropy / math.log(len(shares)) if len(shares) > 1 else 1.0,
        "verdict": "balanced" if ratio <= BALANCED else "nearly balanced" if ratio <= NEARLY else "not balanced",
    }


def _classes(task: Task, records: Sequence[Record]) -> Counter[str] | None:
    classes = labels(task, records)
    if classes is not None:
        return Counter(classes)
    kind = head_kind(task.head)
    marked = [types for record in records if (types := kind.marked_types(record.target)) is not None]
    return Counter(chain.from_iterable(marked)) if marked else None
