"""Which words the tasks use, and how far they share them. Letters: T tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from dynamorouter.explore.rows import TaskRows
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.text import normalise

TOP = 5000
"""The commonest words whose overlap between tasks is reported: rare ones depend on how many rows there are."""


def counts(records: Iterable[Record]) -> Counter[str]:
    """Return how often each word, folded as ``tasks.text.normalise`` does, stands in text and pair."""
    word_counts: Counter[str] = Counter()
    for record in records:
        word_counts.update(normalise(record.text).split())
        if record.pair is not None:
            word_counts.update(normalise(record.pair).split())
    return word_counts


def vocabulary(tasks: Sequence[TaskRows]) -> dict[str, Any]:
    """Return sizes, words that train lacks, and the overlap of all pairs of tasks.

    Returns:
        ``tasks``: per task ``words`` (running), ``different``, ``once`` (share of the different ones that occur once)
        and ``unseen``: by split but train the share of its running words that train has not; ``overlap`` ``(T, T)``:
        Jaccard similarity of the commonest 5,000 words; ``covered`` ``(T, T)``: share of the column task's running
        words that are among the row task's words; ``names``: the tasks in the order of rows and columns.
    """
    by_split = {rows.task.name: {split: counts(content) for split, content in rows.splits.items()} for rows in tasks}
    total = {name: sum(splits.values(), Counter[str]()) for name, splits in by_split.items()}
    names = list(total)
    tops = {name: {word for word, _ in total[name].most_common(TOP)} for name in names}
    return {
        "names": names,
        "tasks": {
            name: {
                "words": total[name].total(),
                "different": len(total[name]),
                "once": sum(count == 1 for count in total[name].values()) / max(1, len(total[name])),
                "unseen": {
                    split: 1.0 - _covered(splits["train"], content)
                    for split, content in splits.items()
                    if split != "train" and "train" in splits
                },
            }
            for name, splits in by_split.items()
        },
        "overlap": [[len(tops[a] & tops[b]) / max(1, len(tops[a] | tops[b])) for b in names] for a in names],
        "covered": [[_covered(total[a], total[b]) for b in names] for a in names],
    }


def _covered(by: Counter[str], words: Counter[str]) -> float:
    """Return the share of running words that are among the other's words."""
    return sum(count for word, count in words.items() if word in by) / max(1, words.total())
