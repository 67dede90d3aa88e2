"""Built-in natural-language inference: premises of many genres with hypotheses that follow, may hold, or cannot hold.

Many hypotheses stand under two opposite premises with opposite labels, so that a hypothesis alone does not give its label away.
"""

from __future__ import annotations

import random
from pathlib import Path

from dynamorouter.data.builtin._cores import Core, Line, normalise, read_cores, split_cores

LABELS = {"E": "entailment", "N": "neutral", "C": "contradiction"}
ROWS = {"train": 1020, "validation": 210}
"""Rows of each split, a third of them per label."""

Triple = tuple[str, str, str]
"""Premise, hypothesis, label."""

_SEED = 2017
_CORES = Path(__file__).with_name("mnli_cores.txt")
_MIXED = 0.6
"""Share of the rows of a label whose hypothesis stands under other premises with other labels."""
_BARE = 0.25
"""Share of sentences that lose their final full stop."""


def rows(split: str) -> list[dict[str, object]]:
    """Return the rows of a split, shuffled, always in the same order and with equally many of each label.

    Args:
        split: ``train`` or ``validation``; no core is in both.

    Returns:
        Rows with ``premise``, ``hypothesis`` and ``label`` (entailment, neutral or contradiction).

    Raises:
        ValueError: if the split is unknown.
    """
    cores = split_cores(read_cores(_CORES), split, _SEED, every=6)
    rng = random.Random(f"{_SEED} {split}")
    triples = _triples(cores)
    verdicts: dict[str, set[str]] = {}
    for _, hypothesis, label in triples:
        verdicts.setdefault(hypothesis, set()).add(label)
    chosen: list[dict[str, object]] = []
    for label in LABELS.values():
        mine = [triple for triple in triples if triple[2] == label]
        mixed = [triple for triple in mine if len(verdicts[triple[1]]) > 1]
        count = ROWS[split] // len(LABELS)
        picked = rng.sample(mixed, min(len(mixed), round(count * _MIXED)))
        rest = [triple for triple in mine if len(verdicts[triple[1]]) == 1]
        picked += rng.sample(rest, count - len(picked))
        for premise, hypothesis, _ in picked:
            chosen.append({"premise": _bare(premise, rng), "hypothesis": _bare(hypothesis, rng), "label": label})
    rng.shuffle(chosen)
    return chosen


def _triples(cores: list[Core]) -> list[Triple]:
    """Return the rows of all cores, each pair of texts once."""
    triples: dict[tuple[str, str], Triple] = {}
    for core in cores:
        for lines in core:
            for triple in _unfold(lines):
                triples.setdefault((normalise(triple[0]), normalise(triple[1])), triple)
    return list(triples.values())


def _unfold(lines: list[Line]) -> list[Triple]:
    premises = [text for mark, text in lines if mark == "P"]
    silent = [text for mark, text in lines if mark == "O"]
    triples: list[Triple] = []
    for mark, text in lines:
        if mark in "PO":
            continue
        triples += [(p, text, LABELS[verdict]) for p, verdict in zip(premises, mark, strict=True) if verdict != "-"]
        if set(mark) == {"E", "C"}:
            triples += [(premise, text, LABELS["N"]) for premise in silent]
    return triples


def _bare(text: str, rng: random.Random) -> str:
    return text.removesuffix(".") if rng.random() < _BARE else text
