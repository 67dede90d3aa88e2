"""The picture of a survey: a histogram of every feature and of the score, with the tiers' cuts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dynamorouter.errors import MissingExtraError
from dynamorouter.explore.complexity import Survey

COLOUR, CUT = "#4c72b0", {"thresholds": "#c44e52", "quantile": "#55a868"}
BINS = 30
_COLUMNS = 4


def require() -> None:
    """Check that matplotlib is there, before any work.

    Raises:
        MissingExtraError: it is not.
    """
    try:
        import matplotlib  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise MissingExtraError(
            "drawing needs matplotlib; install it with `pip install 'dynamorouter[plots]'`, or give --no-plots"
        ) from error


def draw(found: Survey, path: Path) -> Path:
    """Draw all distributions into one file; its ending, such as ``.svg`` or ``.png``, gives the format."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    columns = found.columns()
    lines = -(-(len(columns) + 1) // _COLUMNS)
    with mpl.rc_context({"svg.hashsalt": "dynamorouter", "font.size": 8}):
        figure, axes = plt.subplots(lines, _COLUMNS, figsize=(3 * _COLUMNS, 2.1 * lines), constrained_layout=True)
        for axis, (name, values) in zip(axes.flat, columns.items(), strict=False):
            axis.hist(values, bins=BINS, color=COLOUR)
            axis.set_title(name.replace("_", " "))
            if name == "score":
                for method, colour in CUT.items():
                    for i, cut in enumerate(found.cuts.get(method, ())):
                        axis.axvline(cut, color=colour, linestyle="--", label=method if i == 0 else None)
                axis.legend()
        axis = axes.flat[len(columns)]
        width = 0.8 / max(1, len(found.tiers))
        for at, (method, tiers) in enumerate(found.tiers.items()):
            counts = np.bincount(tiers, minlength=len(found.names))
            axis.bar(np.arange(len(found.names)) + at * width, counts, width=width, label=method)
        axis.set_xticks(np.arange(len(found.names)) + 0.4 - width / 2, found.names)
        axis.set_title("rows by tier")
        axis.legend()
        for spare in axes.flat[len(columns) + 1 :]:
            spare.set_axis_off()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)
    return path
