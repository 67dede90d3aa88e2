"""The exploration in pictures: readable in print, and by the colour-blind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynamorouter.errors import MissingExtraError
from dynamorouter.explore.lengths import QUANTILES, words
from dynamorouter.explore.rows import labels
from dynamorouter.explore.survey import Exploration

DPI = 150
_BINS = 12
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES = ("-", "--", "-.", ":")


def require() -> None:
    """Check that pictures can be drawn.

    Raises:
        MissingExtraError: matplotlib or seaborn is not installed.
    """
    _libraries()


def _libraries() -> tuple[Any, Any]:
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
        import seaborn as sns
    except ImportError as error:
        raise MissingExtraError(
            f"plots need {error.name}; install them with `pip install 'dynamorouter[plots]'`, or give --no-plots"
        ) from error
    return plt, sns


def draw(found: Exploration, folder: Path) -> list[str]:
    """Draw every picture that the data gives rise to, and return the files' names."""
    plt, sns = _libraries()
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with sns.axes_style("whitegrid"), sns.plotting_context("paper", font_scale=1.1), sns.color_palette("colorblind"):
        for name, picture in _PICTURES.items():
            figure = picture(found, plt, sns)
            if figure is not None:
                figure.savefig(folder / name, dpi=DPI, bbox_inches="tight")
                plt.close(figure)
                drawn.append(name)
    return drawn


def _panels(plt: Any, count: int, *, width: float = 4.2, height: float = 3.0) -> tuple[Any, Iterator[Any]]:
    """Return a figure with so many panels, at most three side by side, and the panels."""
    across = min(3, count)
    down = math.ceil(count / across)
    figure, axes = plt.subplots(down, across, figsize=(width * across, height * down), squeeze=False)
    for spare in axes.flat[count:]:
        spare.set_visible(False)
    figure.set_layout_engine("constrained")
    return figure, iter(axes.flat)


def _class_balance(found: Exploration, plt: Any, sns: Any) -> Any:
    shown = {name: own["balance"] for name, own in found.figures["tasks"].items() if own["balance"] is not None}
    if not shown:
        return None
    figure, panels = _panels(plt, len(shown))
    for (name, own), panel in zip(shown.items(), panels, strict=False):
        shares = own["shares"]
        panel.barh(list(shares), list(shares.values()), color=sns.color_palette()[0])
        panel.axvline(1 / len(shares), color="black", linestyle="--", linewidth=1)
        panel.invert_yaxis()
        panel.set(title=f"{name}: {own['verdict']}", xlabel="share (dashed: equal)")
        panel.grid(axis="y", visible=False)
    return figure


def _lengths(found: Exploration, plt: Any, sns: Any) -> Any:
    figure, panels = _panels(plt, len(found.rows))
    for rows, panel in zip(found.rows, panels, strict=False):
        parts = words(rows)
        top = max(2.0, max(float(np.quantile(values, 0.99)) for values in parts.values()))
        bins = np.linspace(0, top, min(40, int(top)) + 1)
        for number, (part, values) in enumerate(parts.items()):
            if part == "input":
                continue
            panel.hist(
                np.clip(values, 0, top), bins=bins, density=True, histtype="step", linewidth=1.8,
                label=found.figures["tasks"][rows.task.name]["columns"][part],
                color=sns.color_palette()[number], linestyle=_LINES[number % len(_LINES)],
            )  # fmt: skip
        panel.set(title=rows.task.name, xlabel="words (last bin: the longest 1 %)", ylabel="density")
        panel.legend()
    return figure


def _length_by_class(found: Exploration, plt: Any, sns: Any) -> Any:
    shown = [(rows, own) for rows in found.rows if (own := labels(rows.task, rows.records)) is not None]
    if not shown:
        return None
    figure, panels = _panels(plt, len(shown))
    for (rows, own), panel in zip(shown, panels, strict=False):
        parts = words(rows)
        lengths, classes = parts.get("input", parts["text"]), np.array(own)
        names = list(rows.task.labels) or sorted(set(own))
        panel.boxplot(
            [lengths[classes == name] for name in names], orientation="horizontal", tick_labels=names, whis=(5, 95),
            showfliers=False, patch_artist=True, boxprops={"facecolor": sns.color_palette()[0], "alpha": 0.6},
            medianprops={"color": "black"},
        )  # fmt: skip
        panel.invert_yaxis()
        panel.set(title=rows.task.name, xlabel="words (box: quartiles, whiskers: 5 to 95 %)")
        panel.grid(axis="y", visible=False)
    return figure


def _length_relation(found: Exploration, plt: Any, sns: Any) -> Any:
    shown = []
    for rows in found.rows:
        for pair, own in found.figures["tasks"][rows.task.name]["length_relations"].items():
            if own["spearman"] is not None and pair != "input/target":
                shown.append((rows, pair, own))
    if not shown:
        return None
    from matplotlib.colors import LogNorm

    figure, panels = _panels(plt, len(shown))
    for (rows, pair, own), panel in zip(shown, panels, strict=False):
        first, second = (words(rows)[part] for part in pair.split("/"))
        extent = _extent(first, second)
        # No finer than whole words, and no lighter than grey, so that single rows are seen.
        cells = tuple(int(min(35, max(2, high - low))) for low, high in (extent[:2], extent[2:]))
        panel.hexbin(first, second, gridsize=cells, mincnt=1, cmap="Greys", linewidths=0.1, extent=extent,
                     norm=LogNorm(vmin=0.2))  # fmt: skip
        edges = np.unique(np.quantile(first, np.linspace(0, 1, _BINS + 1)))
        which = np.clip(np.searchsorted(edges, first, side="right") - 1, 0, max(0, len(edges) - 2))
        there = np.unique(which)
        panel.plot(
            [first[which == i].mean() for i in there], [second[which == i].mean() for i in there],
            marker="o", color=sns.color_palette()[3], linewidth=2, label="mean",
        )  # fmt: skip
        value, (low, high) = own["spearman"]["value"], own["spearman"]["ci95"]
        columns = found.figures["tasks"][rows.task.name]["columns"]
        one, two = (columns[part] for part in pair.split("/"))
        panel.set(
            title=f"{rows.task.name}: Spearman {value:.2f} [{low:.2f}, {high:.2f}]",
            xlabel=f"words of the {one}", ylabel=f"words of the {two}",
        )  # fmt: skip
        panel.legend()
    return figure


def _extent(first: Any, second: Any) -> tuple[float, float, float, float]:
    tops = [max(float(np.quantile(values, 0.99)), float(values.min()) + 1) for values in (first, second)]
    return float(first.min()), tops[0], float(second.min()), tops[1]


def _truncation(found: Exploration, plt: Any, sns: Any) -> Any:
    figure, panel = plt.subplots(figsize=(6.5, 3.8))
    figure.set_layout_engine("constrained")
    palette = sns.color_palette("colorblind", len(found.rows))
    for number, rows in enumerate(found.rows):
        own = found.figures["tasks"][rows.task.name]["truncation"]
        points = [(value, _above(name)) for name, value in own["lengths"].items() if name not in ("mean", "sd")]
        mark = {"color": palette[number], "marker": _MARKS[number % len(_MARKS)]}
        panel.plot(*zip(*points, strict=True), label=rows.task.name, linestyle=_LINES[number % len(_LINES)], **mark)
        panel.plot([own["window"]], [own["cut"]], markersize=12, markerfacecolor="none", linestyle="none", **mark)
    panel.set_xscale("log", base=2)
    unit = found.figures["tasks"][found.rows[0].task.name]["truncation"]["unit"]
    panel.set(xlabel=f"window in {unit}", ylabel="share of rows cut off", title="Large open marks: the chosen window")
    panel.xaxis.set_major_formatter(plt.FuncFormatter(lambda value, _: f"{value:g}"))
    panel.legend(loc="upper right")
    return figure


def _above(quantile: str) -> float:
    """Return the share of rows that are longer than a quantile."""
    return 1.0 - QUANTILES[quantile]


def _vocabulary(found: Exploration, plt: Any, sns: Any) -> Any:
    own = found.figures["vocabulary"]
    names: Sequence[str] = own["names"]
    if len(names) < 2:
        return None
    size = 1.8 + 0.75 * len(names)
    figure, panel = plt.subplots(figsize=(size + 0.8, size))
    figure.set_layout_engine("constrained")
    sns.heatmap(
        np.array(own["covered"]), annot=True, fmt=".2f", vmin=0, vmax=1, cmap="Blues", xticklabels=names,
        yticklabels=names, ax=panel, cbar_kws={"label": "share of the column's running words"},
    )  # fmt: skip
    panel.set(xlabel="words of", ylabel="are known to")
    return figure


Picture = Callable[[Exploration, Any, Any], Any]
_PICTURES: dict[str, Picture] = {
    "class_balance.png": _class_balance,
    "lengths.png": _lengths,
    "length_by_class.png": _length_by_class,
    "length_relation.png": _length_relation,
    "truncation.png": _truncation,
    "vocabulary.png": _vocabulary,
}
