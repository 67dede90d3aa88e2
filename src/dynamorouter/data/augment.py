"""Light, seeded noise on training rows that leaves every target right.

Words are dropped and swapped, and case and final punctuation changed, or the case alone, where a kind of head allows it
(``HeadKind.noise``). Negations and numbers are never dropped or moved.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dynamorouter.tasks.kinds.base import HeadKind, Noise
from dynamorouter.tasks.record import Record

_KEPT = frozenset(
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


@dataclass(frozen=True, slots=True)
class AugmentOptions:
    """How much noise.

    Attributes:
        copies: noisy copies made of each training row; 0 switches it off.
        dropout: chance of each word to be dropped, 0 to 1.
        swap: chance of each word to change places with the next, 0 to 1.
        noise: chance of each text to lose its capitals or its final punctuation, 0 to 1.
    """

    copies: int = 0
    dropout: float = 0.05
    swap: float = 0.05
    noise: float = 0.5

    def problems(self) -> list[str]:
        """Return a sentence for each setting that is out of range."""
        found = [] if self.copies >= 0 else [f"augment.copies is {self.copies}; at least 0 is allowed"]
        for name in ("dropout", "swap", "noise"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                found.append(f"augment.{name} is {value}; 0 to 1 is allowed")
        return found


def augmented(records: Sequence[Record], options: AugmentOptions, *, kind: HeadKind, seed: int) -> Iterator[Record]:
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


def _noisy(record: Record, noise: Mapping[str, Noise], options: AugmentOptions, generator: random.Random) -> Record:
    add_noise = {"words": _disturbed, "case": _recased}
    text, pair = record.text, record.pair
    if "text" in noise:
        text = add_noise[noise["text"]](text, options, generator)
    if "pair" in noise and pair is not None:
        pair = add_noise[noise["pair"]](pair, options, generator)
    return replace(record, text=text, pair=pair)


def _recased(text: str, options: AugmentOptions, generator: random.Random) -> str:
    """Change the case of all words; the number of words stays."""
    if generator.random() >= options.noise:
        return text
    changed = generator.choice((text.lower(), text.upper()))
    return changed if len(changed.split()) == len(text.split()) else text


def _disturbed(text: str, options: AugmentOptions, generator: random.Random) -> str:
    words = text.split()
    if len(words) >= _MIN_WORDS:
        words = [word for word in words if _fixed(word) or generator.random() >= options.dropout] or words
        for at in range(len(words) - 1):
            free = not _fixed(words[at]) and not _fixed(words[at + 1])
            if free and generator.random() < options.swap:
                words[at], words[at + 1] = words[at + 1], words[at]
    if generator.random() < options.noise:
        joined = " ".join(words)
        return generator.choice((joined.lower(), joined.rstrip(" .!?") or joined))
    return " ".join(words)


def _fixed(word: str) -> bool:
    """Tell whether a word turns the meaning round, or is a number."""
    lowered = word.casefold().replace("\u2019", "'").strip('.,;:!?"()')
    return lowered in _KEPT or lowered.endswith("n't") or any(letter.isdigit() for letter in lowered)
