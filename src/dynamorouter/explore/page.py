"""The exploration as one Markdown page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

TITLES = {
    "class_balance.png": "Share of each class",
    "lengths.png": "Length of the rows in words",
    "length_by_class.png": "Length in words by class",
    "length_relation.png": "Length of the answer by length of the question",
    "truncation.png": "Share of rows that a window cuts off",
    "vocabulary.png": "Share of running words that another task has too",
}


class Said(Protocol):
    """An answer in words."""

    @property
    def task(self) -> str:
        """Whose rows."""

    @property
    def question(self) -> str:
        """What was asked."""

    @property
    def words(self) -> str:
        """The answer."""


def page(figures: Mapping[str, Any], answers: Sequence[Said], pictures: Sequence[str] = ()) -> str:
    """Return the page."""
    sections = [
        "# Exploration\n",
        *(f"- **{answer.task}.** {answer.question} {answer.words}" for answer in answers),
        "\n## Rows and truncation\n",
        table(
            ("task", "rows", "left out", "window", "unit", "median", "p95", "max", "cut", "cut with target"),
            (_truncation(name, own) for name, own in figures["tasks"].items()),
        ),
        "## Lengths in words\n",
        table(
            ("task", "part", "mean", "sd", "p5", "median", "p95", "max"),
            (
                (name, part, *(s[key] for key in ("mean", "sd", "p5", "p50", "p95", "max")))
                for name, own in figures["tasks"].items()
                for part, s in own["words"].items()
            ),
        ),
        "## Do lengths go together?\n",
        table(
            ("task", "lengths of", "rows", "Pearson", "95 %", "Spearman", "95 %"),
            (
                (name, pair.replace("/", " and "), own_pair["n"], *_correlation(own_pair))
                for name, own in figures["tasks"].items()
                for pair, own_pair in own["length_relations"].items()
            ),
        ),
        *_balances(figures["tasks"]),
        "## Duplicates\n",
        "Equal but for case, punctuation and spaces; near ones share "
        f"{figures['duplicates']['similar']:.0%} of their runs of three words.\n",
        table(
            ("task", "split", "rows", "again", "contradicting", "near again", "in train", "near in train"),
            (
                (name, split, *(own.get(key) for key in _COUNTS))
                for name, splits in figures["duplicates"]["tasks"].items()
                for split, own in splits.items()
            ),
        ),
        *_between(figures["duplicates"]["between"]),
        *_vocabulary(figures["vocabulary"]),
        *(f"![{TITLES[name]}]({name})\n" for name in pictures),
    ]
    return "\n".join(sections).rstrip() + "\n"


def _correlation(relation: Mapping[str, Any]) -> Iterator[object]:
    """Yield each correlation with its interval; nothing where there is none."""
    for name in ("pearson", "spearman"):
        found = relation[name]
        yield None if found is None else found["value"]
        yield None if found is None else "{:.3f} to {:.3f}".format(*found["ci95"])


_COUNTS = ("rows", "again", "contradicting", "near_again", "in_train", "near_in_train")


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table with an empty line after it."""
    lines = [heads, ["---"] * len(heads), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return "-" if value is None else str(value).replace("|", "\\|")


def _truncation(name: str, own: Mapping[str, Any]) -> tuple[object, ...]:
    cut = own["truncation"]
    lengths = [cut["lengths"][key] for key in ("p50", "p95", "max")]
    rows, left_out = sum(own["rows"].values()), sum(own["problems"].values())
    return (name, rows, left_out, cut["window"], cut["unit"], *lengths, cut["cut"], cut.get("with_target"))


def _balances(tasks: Mapping[str, Any]) -> list[str]:
    rows = [
        (name, own["balance"]["verdict"], own["balance"]["ratio"], own["balance"]["evenness"], label, share)
        for name, own in tasks.items()
        if own["balance"] is not None
        for label, share in own["balance"]["shares"].items()
    ]
    heads = ("task", "verdict", "largest / smallest", "evenness", "class", "share")
    return ["## Class balance\n", table(heads, rows)] if rows else []


def _between(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    if not pairs:
        return ["No row of one task stands in another.\n"]
    keys = ("second", "first", "equal", "near")
    return [table(("rows of", "also in", "equal", "near"), ([pair[key] for key in keys] for pair in pairs))]


def _vocabulary(own: Mapping[str, Any]) -> list[str]:
    names = own["names"]
    parts = [
        "## Vocabulary\n",
        table(
            ("task", "running words", "different", "of these once", "unseen in train"),
            (
                (
                    name,
                    sizes["words"],
                    sizes["different"],
                    sizes["once"],
                    ", ".join(f"{split} {share:.3f}" for split, share in sizes["unseen"].items()) or None,
                )
                for name, sizes in own["tasks"].items()
            ),
        ),
    ]
    if len(names) > 1:
        rows = ((name, *row) for name, row in zip(names, own["overlap"], strict=True))
        parts += ["Overlap (Jaccard) of the commonest 5,000 words:\n", table(("", *names), rows)]
    return parts
