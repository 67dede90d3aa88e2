"""How figures look: one size of type, colours that the colour-blind and a grey printer tell apart, the same bytes."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from dynamorouter.errors import MissingExtraError

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
"""Okabe and Ito's palette."""
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
MAP = "cividis"
"""Runs evenly from dark to light, for all kinds of sight and on paper."""
STYLE = {
    "axes.prop_cycle": f"cycler('color', {list(COLOURS)})",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.dpi": 100,
    "svg.fonttype": "none",
    "svg.hashsalt": "dynamorouter",
    "font.family": "DejaVu Sans",
}


def line_style(index: int) -> dict[str, Any]:
    """Return the colour, mark and dashes of one line among several, as arguments of ``plot``."""
    return {
        "color": COLOURS[index % (len(COLOURS) - 1)],
        "marker": MARKS[index % len(MARKS)],
        "linestyle": LINES[index % len(LINES)],
    }


def plotting() -> Any:
    """Return matplotlib's ``pyplot``, drawing to files alone.

    Raises:
        MissingExtraError: matplotlib or seaborn is not installed.
    """
    try:
        import matplotlib as mpl
        import seaborn as sns  # noqa: F401 - the heatmaps need it
    except ImportError as error:
        raise MissingExtraError(
            f"figures need the package {error.name!r}, which is not installed; "
            "install it with: pip install 'dynamorouter[plots]', or give --no-plots where a command has it"
        ) from error
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def drawn(draw: Callable[[Any], Any], *, form: str = "svg") -> bytes:
    """Return what a function draws, as SVG or PNG.

    Args:
        draw: is given ``pyplot``, and returns a figure.
        form: ``svg`` or ``png``.
    """
    plt = plotting()
    with plt.rc_context(STYLE):
        figure = draw(plt)
        buffer = io.BytesIO()
        options = {"metadata": {"Date": None}} if form == "svg" else {"dpi": 150}
        figure.savefig(buffer, format=form, bbox_inches="tight", **options)
        plt.close(figure)
    return buffer.getvalue()


def panels(plt: Any, count: int, *, across: int = 3, width: float = 4.2, height: float = 3.0) -> tuple[Any, list[Any]]:
    """Return a figure with ``count`` panels, at most ``across`` side by side, and the panels."""
    columns = min(across, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    for spare in axes.flat[count:]:
        spare.set_visible(False)
    figure.set_layout_engine("constrained")
    return figure, list(axes.flat[:count])


def heat(
    plt: Any,
    axis: Any,
    table: list[list[float]],
    *,
    rows: list[str],
    columns: list[str],
    low: float | None = None,
    high: float | None = None,
    digits: int = 2,
    bar: bool = False,
    colours: str = MAP,
) -> None:
    """Draw a table as a heatmap with its numbers; the type turns light on dark cells."""
    import numpy as np
    import seaborn as sns

    values = np.array(table, dtype=float)
    shown = values.round(digits) + 0.0  # no minus before a zero
    sns.heatmap(
        values,
        ax=axis,
        annot=shown,
        fmt=f".{digits}f",
        vmin=low,
        vmax=high,
        cmap=colours,
        cbar=bar,
        xticklabels=columns,
        yticklabels=rows,
        linewidths=0.5,
        linecolor="white",
        annot_kws={"fontsize": 8},
    )
    axis.set_yticklabels(rows, rotation=0)
    axis.set_xticklabels(columns, rotation=30, ha="right")
