"""Light, seeded noise on training rows that leaves every target right.

Words are dropped and swapped, and case and final punctuation changed, or the case alone, where a kind of head allows it
(``HeadKind.noise``). Negations and numbers are never dropped or moved.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from dynamorouter.data.config import AugmentConfig
from dynamorouter.tasks.kinds.base import HeadKind, Noise
from dynamorouter.tasks.record import Record

_NEVER_DROPPED = frozenset(
    {
        "not",
        "no",
        "never",
        "nor",
        "none",
        "nothing",
        "nobody",
        "nowhere",
        "neither",
        "without",
        "cannot",
        "hardly",
        "barely",
        "few",
        "less",
        "least",
        "only",
        "but",
    }
)
_MIN_WORDS = 4


def augmented(records: Sequence[Record], options: AugmentConfig, *, kind: HeadKind, seed: int) -> Iterator[Record]:
    """Yield the noisy copies of training rows, each with its own id; a copy that noise left as it was is left out.

    Args:
        records: training rows of one task.
        options: how much noise.
        kind: of the task's head; says what noise may do to its rows.
        seed: the noise of a row depends on it and on the row's task and id alone.
    """
    for record in records:
        for copy in range(1, options.copies + 1):
            generator = random.Random(f"{seed}|{record.task_name}|{record.id}|{copy}")
            noisy = _noisy(record, kind.noise, options, generator)
            if (noisy.text, noisy.pair) != (record.text, record.pair):
                yield replace(noisy, id=f"{record.id}#{copy}")


def _noisy(record: Record, noise: Mapping[str, Noise], options: AugmentConfig, generator: random.Random) -> Record:
    add_noise = {"words": _disturbed, "case": _recased}
    text, pair = record.text, record.pair
    if "text" in noise:
        text = add_noise[noise["text"]](text, options, generator)
    if "pair" in noise and pair is not None:
        pair = add_noise[noise["pair"]](pair, options, generator)
    return replace(record, text=text, pair=pair)


def _recased(text: str, options: AugmentConfig, generator: random.Random) -> str:
    """Change the case of all words; the number of words stays."""
    if generator.random() >= options.noise:
        return text
    changed = generator.choice((text.lower(), text.upper()))
    return changed if len(changed.split()) == len(text.split()) else text


def _disturbed(text: str, options: AugmentConfig, generator: random.Random) -> str:
    words = text.split()
    if len(words) >= _MIN_WORDS:
        words = [word for word in words if _fixed(word) or generator.random() >= options.dropout] or words
        for index in range(len(words) - 1):
            free = not _fixed(words[index]) and not _fixed(words[index + 1])
            if free and generator.random() < options.swap:
                words[index], words[index + 1] = words[index + 1], words[index]
    if generator.random() < options.noise:
        joined = " ".join(words)
        return generator.choice((joined.lower(), joined.rstrip(" .!?") or joined))
    return " ".join(words)


def _fixed(word: str) -> bool:
    """Tell whether a word turns the meaning round, or is a number."""
    lowered = word.casefold().replace("\u2019", "'").strip('.,;:!?"()')
    return lowered in _NEVER_DROPPED or lowered.endswith("n't") or any(letter.isdigit() for letter in lowered)
