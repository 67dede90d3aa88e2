"""The exploration as the blocks of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynamorouter.report.document import Block, Bullets, Heading, Picture, Table, Text

_COUNTS = ("rows", "again", "contradicting", "near_again", "in_train", "near_in_train")


def page(figures: Mapping[str, Any], answers: Sequence[str], pictures: Sequence[Picture] = ()) -> list[Block]:
    """Return the report of a survey's figures, with its answers in words and pictures."""
    tasks: Mapping[str, Any] = figures["tasks"]
    return [
        Heading("Exploration", 1),
        Bullets(answers),
        Heading("Rows and truncation"),
        _table(
            ("task", "rows", "left out", "window", "unit", "median", "p95", "max", "cut", "cut with target"),
            [_truncation(name, task) for name, task in tasks.items()],
        ),
        Heading("Lengths in words"),
        _table(
            ("task", "part", "mean", "sd", "p5", "median", "p95", "max"),
            [
                (name, part, *(lengths[key] for key in ("mean", "sd", "p5", "p50", "p95", "max")))
                for name, task in tasks.items()
                for part, lengths in task["words"].items()
            ],
        ),
        Heading("Do lengths go together?"),
        _table(
            ("task", "lengths of", "rows", "Pearson", "95 %", "Spearman", "95 %"),
            [
                (name, pair.replace("/", " and "), relation["n"], *_correlations(relation))
                for name, task in tasks.items()
                for pair, relation in task["length_relations"].items()
            ],
        ),
        *_balances(tasks),
        *_duplicates(figures["duplicates"]),
        *_vocabulary(figures["vocabulary"]),
        *pictures,
    ]


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    return Table(heads, rows, words=True, digits=3)


def _correlations(relation: Mapping[str, Any]) -> list[object]:
    """Return each correlation and its interval; ``None`` where there is none."""
    cells: list[object] = []
    for name in ("pearson", "spearman"):
        measured = relation[name]
        cells += [None, None] if measured is None else [measured["value"], "{:.3f} to {:.3f}".format(*measured["ci95"])]
    return cells


def _truncation(name: str, task: Mapping[str, Any]) -> tuple[object, ...]:
    cut = task["truncation"]
    lengths = [cut["lengths"][key] for key in ("p50", "p95", "max")]
    rows, left_out = sum(task["rows"].values()), sum(task["problems"].values())
    return (name, rows, left_out, cut["window"], cut["unit"], *lengths, cut["cut"], cut.get("with_target"))


def _balances(tasks: Mapping[str, Any]) -> list[Block]:
    rows = [
        (name, balance["verdict"], balance["ratio"], balance["evenness"], label, share)
        for name, task in tasks.items()
        if (balance := task["balance"]) is not None
        for label, share in balance["shares"].items()
    ]
    heads = ("task", "verdict", "largest / smallest", "evenness", "class", "share")
    return [Heading("Class balance"), _table(heads, rows)] if rows else []


def _duplicates(counts: Mapping[str, Any]) -> list[Block]:
    within = _table(
        ("task", "split", "rows", "again", "contradicting", "near again", "in train", "near in train"),
        [
            (name, split, *(of_split.get(key) for key in _COUNTS))
            for name, splits in counts["tasks"].items()
            for split, of_split in splits.items()
        ],
    )
    pairs = [[pair[key] for key in ("second", "first", "equal", "near")] for pair in counts["between"]]
    alike = f"Equal but for case, punctuation and spaces; near ones share {counts['similar']:.0%} of their runs of "
    return [
        Heading("Duplicates"),
        Text(alike + "three words."),
        within,
        _table(("rows of", "also in", "equal", "near"), pairs)
        if pairs
        else Text("No row of one task stands in another."),
    ]


def _vocabulary(vocabulary: Mapping[str, Any]) -> list[Block]:
    names = vocabulary["names"]
    sizes = _table(
        ("task", "running words", "different", "of these once", "unseen in train"),
        [
            (
                name,
                size["words"],
                size["different"],
                size["once"],
                ", ".join(f"{split} {share:.3f}" for split, share in size["unseen"].items()) or None,
            )
            for name, size in vocabulary["tasks"].items()
        ],
    )
    overlap = _table(("", *names), [(name, *row) for name, row in zip(names, vocabulary["overlap"], strict=True)])
    about = Text("Overlap (Jaccard) of the commonest 5,000 words:")
    blocks: list[Block] = [Heading("Vocabulary"), sizes]
    return [*blocks, about, overlap] if len(names) > 1 else blocks
