"""Short rows made of longer ones: one sentence of a text or a context, or a few of its words.

A router that has seen short plain sentences in one task alone takes every short plain sentence for that task, and is
sure of it. So it may also be fitted and calibrated on pieces of the rows of all tasks.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from dynamorouter.tasks.kinds import head_kind
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task

LEAST_WORDS, LONGEST_PIECE = 3, 12
"""Words of the shortest piece, and of the longest that is no whole sentence."""


def shortened(task: Task, records: Sequence[Record], *, share: float, seed: int) -> Iterator[Record]:
    """Yield pieces of a share of a task's rows, one of each; targets are left as they are, of the whole text.

    Args:
        task: of the rows.
        records: rows: of a single text a piece of it, of a question a piece of its context; other pairs, and texts that
            are short already, have none. A row that marks things in its text gives a piece only where it marks one
            there, since without any nothing says that it is of this task.
        share: of the rows, 0 to 1.
        seed: a row's piece depends on it, the task and the row's id alone.
    """
    has_context = head_kind(task.head).pair == "context"
    for record in records:
        generator = random.Random(f"{seed}|{task.name}|{record.id}|short")
        if generator.random() >= share or (record.pair is not None and not has_context):
            continue
        words = (record.text if record.pair is None else record.pair).split()
        first, end = _piece(words, generator)
        if end - first >= len(words) or not _marks_something(task, record, first, end):
            continue
        text = " ".join(words[first:end]).rstrip(",;:-( ")
        ends = text[-1:] in ".!?" or generator.random() < 0.5
        piece = text if ends else f"{text}."
        text, pair = (piece, None) if record.pair is None else (record.text, piece)
        yield replace(record, text=text, pair=pair, id=f"{record.id}#short")


def _piece(words: Sequence[str], generator: random.Random) -> tuple[int, int]:
    """Return where a piece begins and ends among the words: a whole sentence of several, else a run of words."""
    starts = [0]
    for position, (word, following) in enumerate(pairwise(words), start=1):
        if word[-1] in ".!?" and following[0].isupper():
            starts.append(position)
    sentences = [
        (first, end) for first, end in zip(starts, [*starts[1:], len(words)], strict=True) if end - first >= LEAST_WORDS
    ]
    if len(sentences) > 1:
        return generator.choice(sentences)
    if len(words) <= LEAST_WORDS:
        return 0, len(words)
    count = generator.randint(LEAST_WORDS, min(LONGEST_PIECE, len(words) - 1))
    first = generator.choice((0, generator.randrange(len(words) - count + 1)))
    return first, first + count


def _marks_something(task: Task, record: Record, first: int, end: int) -> bool:
    """Tell whether a piece holds a marked thing; true where rows mark nothing."""
    if not isinstance(record.target, list):
        return True
    marked = head_kind(task.head).marked_types(record.target[first:end])
    return marked is None or bool(marked)
