"""The exploration in figures: readable in print, and by the colour-blind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamorouter.explore.lengths import QUANTILES, words
from dynamorouter.explore.rows import labels
from dynamorouter.explore.survey import Exploration
from dynamorouter.report.document import Picture
from dynamorouter.report.style import COLOURS, LINES, MARKS, drawn, heat, panels

Draw = Callable[[Any], Any]
"""Is given ``pyplot``, and returns a figure."""
_BINS = 12


def draw(survey: Exploration) -> list[Picture]:
    """Draw every figure that the data gives rise to, as PNG.

    Raises:
        MissingExtraError: matplotlib or seaborn is not installed.
    """
    return [
        Picture(name, drawn(figure, form="png"), about, form="png")
        for name, (about, plan) in _FIGURES.items()
        if (figure := plan(survey)) is not None
    ]


def _class_balance(survey: Exploration) -> Draw | None:
    balances = {name: task["balance"] for name, task in survey.figures["tasks"].items() if task["balance"] is not None}

    def figure(plt: Any) -> Any:
        whole, axes = panels(plt, len(balances))
        for (name, balance), axis in zip(balances.items(), axes, strict=True):
            shares = balance["shares"]
            axis.barh(list(shares), list(shares.values()))
            axis.axvline(1 / len(shares), color="black", linestyle="--", linewidth=1)
            axis.invert_yaxis()
            axis.set(title=f"{name}: {balance['verdict']}", xlabel="share (dashed: equal)")
            axis.grid(axis="x")
        return whole

    return figure if balances else None


def _lengths(survey: Exploration) -> Draw:
    def figure(plt: Any) -> Any:
        whole, axes = panels(plt, len(survey.rows))
        for rows, axis in zip(survey.rows, axes, strict=True):
            parts = words(rows)
            top = max(2.0, max(float(np.quantile(lengths, 0.99)) for lengths in parts.values()))
            bins = np.linspace(0, top, min(40, int(top)) + 1)
            columns = survey.figures["tasks"][rows.task.name]["columns"]
            for i, part in enumerate(name for name in parts if name != "input"):
                axis.hist(
                    np.clip(parts[part], 0, top), bins=bins, density=True, histtype="step", linewidth=1.8,
                    label=columns[part], color=COLOURS[i], linestyle=LINES[i],
                )  # fmt: skip
            axis.set(title=rows.task.name, xlabel="words (last bin: the longest 1 %)", ylabel="density")
            axis.grid()
            axis.legend()
        return whole

    return figure


def _length_by_class(survey: Exploration) -> Draw | None:
    labelled = [(rows, classes) for rows in survey.rows if (classes := labels(rows.task, rows.records)) is not None]

    def figure(plt: Any) -> Any:
        whole, axes = panels(plt, len(labelled))
        for (rows, classes), axis in zip(labelled, axes, strict=True):
            parts = words(rows)
            lengths, class_of_rows = parts.get("input", parts["text"]), np.array(classes)
            names = list(rows.task.labels) or sorted(set(classes))
            axis.boxplot(
                [lengths[class_of_rows == name] for name in names], orientation="horizontal", tick_labels=names,
                whis=(5, 95), showfliers=False, patch_artist=True, boxprops={"facecolor": COLOURS[0], "alpha": 0.6},
                medianprops={"color": "black"},
            )  # fmt: skip
            axis.invert_yaxis()
            axis.set(title=rows.task.name, xlabel="words (box: quartiles, whiskers: 5 to 95 %)")
            axis.grid(axis="x")
        return whole

    return figure if labelled else None


def _length_relation(survey: Exploration) -> Draw | None:
    related = [
        (rows, pair, relation)
        for rows in survey.rows
        for pair, relation in survey.figures["tasks"][rows.task.name]["length_relations"].items()
        if relation["spearman"] is not None and pair != "input/target"
    ]

    def figure(plt: Any) -> Any:
        whole, axes = panels(plt, len(related))
        for (rows, pair, relation), axis in zip(related, axes, strict=True):
            first, second = (words(rows)[part] for part in pair.split("/"))
            _scatter(axis, first, second)
            value, (low, high) = relation["spearman"]["value"], relation["spearman"]["ci95"]
            columns = survey.figures["tasks"][rows.task.name]["columns"]
            one, two = (columns[part] for part in pair.split("/"))
            title = f"{rows.task.name}: Spearman {value:.2f} [{low:.2f}, {high:.2f}]"
            axis.set(title=title, xlabel=f"words of the {one}", ylabel=f"words of the {two}")
            axis.legend()
        return whole

    return figure if related else None


def _scatter(axis: Any, first: NDArray[Any], second: NDArray[Any]) -> None:
    """Draw how often pairs of lengths occur, and the mean of the second by the first."""
    from matplotlib.colors import LogNorm

    extent = _extent(first, second)
    # No finer than whole words, and no lighter than grey, so that single rows are seen.
    cells = tuple(int(min(35, max(2, high - low))) for low, high in (extent[:2], extent[2:]))
    axis.hexbin(
        first, second, gridsize=cells, mincnt=1, cmap="Greys", linewidths=0.1, extent=extent, norm=LogNorm(vmin=0.2)
    )
    edges = np.unique(np.quantile(first, np.linspace(0, 1, _BINS + 1)))
    bin_of_rows = np.clip(np.searchsorted(edges, first, side="right") - 1, 0, max(0, len(edges) - 2))
    means = [(first[bin_of_rows == i].mean(), second[bin_of_rows == i].mean()) for i in np.unique(bin_of_rows)]
    axis.plot(*zip(*means, strict=True), marker="o", color=COLOURS[3], linewidth=2, label="mean")


def _extent(first: NDArray[Any], second: NDArray[Any]) -> tuple[float, float, float, float]:
    tops = [max(float(np.quantile(values, 0.99)), float(values.min()) + 1) for values in (first, second)]
    return float(first.min()), tops[0], float(second.min()), tops[1]


def _truncation(survey: Exploration) -> Draw:
    cuts = {rows.task.name: survey.figures["tasks"][rows.task.name]["truncation"] for rows in survey.rows}

    def figure(plt: Any) -> Any:
        whole, axis = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
        for i, (name, cut) in enumerate(cuts.items()):
            points = [(length, 1.0 - QUANTILES[key]) for key, length in cut["lengths"].items() if key in QUANTILES]
            mark = {"color": COLOURS[i % len(COLOURS)], "marker": MARKS[i % len(MARKS)]}
            axis.plot(*zip(*points, strict=True), label=name, linestyle=LINES[i % len(LINES)], **mark)
            axis.plot([cut["window"]], [cut["cut"]], markersize=12, markerfacecolor="none", linestyle="none", **mark)
        axis.set_xscale("log", base=2)
        unit = next(iter(cuts.values()))["unit"]
        axis.set(xlabel=f"window in {unit}", ylabel="share of rows cut off", title="Large open marks: the window")
        axis.xaxis.set_major_formatter(plt.FuncFormatter(lambda value, _: f"{value:g}"))
        axis.grid()
        axis.legend(loc="upper right")
        return whole

    return figure


def _vocabulary(survey: Exploration) -> Draw | None:
    vocabulary = survey.figures["vocabulary"]
    names: Sequence[str] = vocabulary["names"]

    def figure(plt: Any) -> Any:
        size = 1.8 + 0.75 * len(names)
        whole, axis = plt.subplots(figsize=(size + 0.8, size), layout="constrained")
        heat(plt, axis, vocabulary["covered"], rows=list(names), columns=list(names), low=0, high=1)
        axis.set(xlabel="words of", ylabel="are known to")
        return whole

    return figure if len(names) > 1 else None


_FIGURES: dict[str, tuple[str, Callable[[Exploration], Draw | None]]] = {
    "class_balance": ("Share of each class", _class_balance),
    "lengths": ("Length of the rows in words", _lengths),
    "length_by_class": ("Length in words by class", _length_by_class),
    "length_relation": ("Length of the answer by length of the question", _length_relation),
    "truncation": ("Share of rows that a window cuts off", _truncation),
    "vocabulary": ("Share of running words that another task has too", _vocabulary),
}
"""By name: what a figure shows, and what plans it."""
