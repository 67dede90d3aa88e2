"""The picture of the layers: the experts' spectra, how far their spans coincide, and the cosines of their changes.

Two experts are compared in the layers that both change; where one of them changes nothing, there is nothing to compare.

Letters: L layers, E experts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamorouter.metrics.bootstrap import Array
from dynamorouter.report.style import COLOURS, MARKS, drawn, heat, line_style

MOST_TICKS = 13
"""Most labels on the axis of the blocks; with more blocks every second, third, .. one has a label."""

Rows = Sequence[Mapping[str, Any]]


def layers(rows: Rows, *, form: str = "svg") -> bytes:
    """Draw the experts' spectra, how far their spans coincide in each block, and which experts' changes are alike."""
    layer_rows = [row for row in rows if row["study"] == "layers"]
    names = list(layer_rows[0]["spectra"])

    def draw(plt: Any) -> Any:
        figure, axes = plt.subplots(1, 3, figsize=(12.0, 3.4), width_ratios=(1, 1.1, 1.2))
        _spectra(axes[0], layer_rows, names)
        _overlaps(axes[1], layer_rows)
        cosines = mean_cosines(layer_rows)
        heat(plt, axes[2], cosines.tolist(), rows=names, columns=names, low=-1.0, high=1.0, colours="PuOr")
        axes[2].set_title("cosine of the changes, mean over the layers of both")
        if np.isnan(cosines).any():
            axes[2].set_xlabel("empty: the two change no layer in common")
        figure.tight_layout()
        return figure

    return drawn(draw, form=form)


def compared(layer_rows: Rows) -> NDArray[np.bool_]:
    """Return whether both of two experts change a layer, ``(L, E, E)``."""
    changed = np.array([[bool(spectrum) for spectrum in row["spectra"].values()] for row in layer_rows])  # (L, E)
    return np.asarray(changed[:, :, None] & changed[:, None, :])


def mean_cosines(layer_rows: Rows) -> Array:
    """Return the mean cosine of every two experts over the layers that both change, ``(E, E)``; NaN without any."""
    both = compared(layer_rows)
    cosines = np.array([row["cosine"] for row in layer_rows], dtype=float)
    counts = both.sum(axis=0)
    return np.where(counts > 0, np.where(both, cosines, 0.0).sum(axis=0) / np.maximum(counts, 1), np.nan)


def mean_overlaps(layer_rows: Rows, side: str) -> Array:
    """Return the mean overlap of two different experts' spans by layer, ``(L,)``; NaN where no two change it.

    Args:
        layer_rows: of the study of layers.
        side: ``left`` or ``right``.
    """
    both = compared(layer_rows)
    both = both & ~np.eye(both.shape[1], dtype=bool)
    counts = both.sum(axis=(1, 2))
    overlaps = np.where(both, np.array([row[side] for row in layer_rows], dtype=float), 0.0).sum(axis=(1, 2))
    return np.where(counts > 0, overlaps / np.maximum(counts, 1), np.nan)


def _spectra(axis: Any, layer_rows: Rows, names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        spectra = [np.array(row["spectra"][name]) for row in layer_rows if row["spectra"][name]]
        size = min(map(len, spectra), default=0)
        if size:
            shares = np.array([s[:size] / s[0] for s in spectra])
            axis.plot(range(1, size + 1), shares.mean(axis=0), label=name, markersize=3, **line_style(index))
    axis.set_xlabel("singular value")
    axis.set_ylabel("over the largest, mean over layers")
    axis.set_ylim(0, 1.05)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend()


def _overlaps(axis: Any, layer_rows: Rows) -> None:
    """Draw a dot for every layer and a line through the means of the blocks."""
    blocks = [block_of(row["layer"]) for row in layer_rows]
    order = sorted(set(blocks), key=lambda block: (not block.isdigit(), int(block) if block.isdigit() else 0, block))
    places = np.array([order.index(block) for block in blocks])
    for index, (side, label) in enumerate((("right", "read from (A)"), ("left", "written to (B)"))):
        values = mean_overlaps(layer_rows, side)
        axis.scatter(places, values, s=8, alpha=0.35, color=COLOURS[index], marker=MARKS[index], linewidths=0)
        axis.plot(*_block_means(places, values), label=label, markersize=3, **line_style(index))
    spectra = [[len(spectrum) for spectrum in row["spectra"].values() if spectrum] for row in layer_rows]
    by_chance = np.array(
        [np.mean(ranks) / row["shape"][1] if ranks else np.nan for ranks, row in zip(spectra, layer_rows, strict=True)]
    )
    axis.plot(*_block_means(places, by_chance), color="#888888", linewidth=1, label="random spans read from")
    step = -(-len(order) // MOST_TICKS)
    axis.set_xticks(range(0, len(order), step), order[::step])
    axis.set_xlabel("block; a dot is a layer, the line their mean")
    axis.set_ylabel("overlap of two experts' spans, mean")
    axis.set_ylim(0, 1.4 * axis.get_ylim()[1])
    axis.legend(loc="upper right")


def _block_means(places: Array, values: Array) -> tuple[list[int], list[float]]:
    """Return the blocks that have a value, and the mean of each one's values."""
    blocks = sorted({int(block) for block, value in zip(places, values, strict=True) if not np.isnan(value)})
    return blocks, [float(np.nanmean(values[places == block])) for block in blocks]


def block_of(layer: str) -> str:
    """Return the number of a layer's block, or the end of its name where it lies in none."""
    number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", layer)
    return number[1] if number else layer.removesuffix(".dense").rsplit(".", 1)[-1]
