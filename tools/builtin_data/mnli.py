"""Built-in natural-language inference: premises of many genres with hypotheses that follow, may hold, or cannot hold.

Many hypotheses stand under two opposite premises with opposite labels, so that a hypothesis alone does not give its
label away. Some are two statements in one, the first of which follows: the second then decides.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

from builtin_data._cores import Core, Line, normalise, read_cores, split_cores

LABELS = {"E": "entailment", "N": "neutral", "C": "contradiction"}
ROWS = {"train": 1080, "validation": 210}
"""Rows of each split, a third of them per label."""

Triple = tuple[str, str, str]
"""Premise, hypothesis, label."""

_SEED = 2017
_CORES = Path(__file__).with_name("mnli_cores.txt")
_MIXED = 0.75
"""Share of the rows of a label whose hypothesis stands under other premises with other labels."""
_JOINED = 0.2
"""Share of the rows whose hypothesis joins two statements."""
_LOWERED = re.compile(r"(A|An|The|There|It|He|She|They|We|You|My|Our|His|Her|Its|Their|No|Nobody|Some|Most|Many|All)\b")
"""First words that lose their capital inside a sentence."""
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
    joined = _join(triples, rng)
    count = ROWS[split] // len(LABELS)
    chosen: list[dict[str, object]] = []
    for label in LABELS.values():
        mine = [triple for triple in triples if triple[2] == label]
        mixed = [triple for triple in mine if len(verdicts[triple[1]]) > 1]
        picked = rng.sample(joined[label], round(count * _JOINED))
        picked += rng.sample(mixed, min(len(mixed), round(count * (1 - _JOINED) * _MIXED)))
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


def _join(triples: list[Triple], rng: random.Random) -> dict[str, list[Triple]]:
    """Return, by label, rows that join an entailed statement with one of that label, one for each premise."""
    by_premise: dict[str, list[Triple]] = {}
    for triple in triples:
        by_premise.setdefault(triple[0], []).append(triple)
    joined: dict[str, list[Triple]] = {label: [] for label in LABELS.values()}
    for premise, mine in by_premise.items():
        sure = [hypothesis for _, hypothesis, label in mine if label == LABELS["E"] and hypothesis.endswith(".")]
        if not sure:
            continue
        first = rng.choice(sure)
        for label, found in joined.items():
            second = [text for _, text, other in mine if other == label and text != first and text.endswith(".")]
            if second:
                found.append((premise, _and(first, rng.choice(second)), label))
    return joined


def _and(first: str, second: str) -> str:
    lowered = second[0].lower() + second[1:] if _LOWERED.match(second) else second
    return f"{first.removesuffix('.')}, and {lowered}"


def _bare(text: str, rng: random.Random) -> str:
    return text.removesuffix(".") if rng.random() < _BARE else text
