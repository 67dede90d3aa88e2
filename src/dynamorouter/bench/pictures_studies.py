"""Pictures of the studies: sweeps, what pairs lose, spectra and angles of layers, tasks that were left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynamorouter.bench.canvas import COLOURS, LINES, MARKS, drawn, heat
from dynamorouter.bench.pictures import share

SWEEPS = (
    ("coefficient", "coefficient of task arithmetic"),
    ("density", "density of TIES"),
    ("rank", "rank of the mean of the changes (log scale)"),
)
Rows = Sequence[Mapping[str, Any]]


def sweeps(rows: Rows, *, form: str = "svg") -> bytes:
    """Draw each task's score over its expert's along every sweep."""
    alone = {row["tasks"][0]: row["scores"][row["tasks"][0]] for row in rows if row["study"] == "alone"}
    there = [(study, label) for study, label in SWEEPS if any(row["study"] == study for row in rows)]

    def draw(plt: Any) -> Any:
        figure, axes = plt.subplots(1, len(there), figsize=(3.3 * len(there), 3.0), sharey=True, squeeze=False)
        for axis, (study, label) in zip(axes[0], there, strict=True):
            own = sorted((row for row in rows if row["study"] == study), key=lambda row: row["at"])
            at = [row["at"] for row in own]
            for place, task in enumerate(own[0]["scores"]):
                values = [share(row["scores"][task], alone.get(task, 1.0)) for row in own]
                axis.plot(at, values, label=task, linewidth=1.2, markersize=4, **_style(place))
            if study == "rank":
                axis.set_xscale("log", base=2)
                axis.set_xticks(at, [str(rank) for rank in at])
            axis.axhline(1.0, color="#888888", linewidth=0.8)
            axis.set_xlabel(label)
            axis.grid(color="#eeeeee", linewidth=0.6)
        axes[0][0].set_ylabel("score over the expert's" if alone else "score")
        axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.tight_layout()
        return figure

    return drawn(draw, form=form)


def _style(place: int) -> dict[str, Any]:
    return {
        "color": COLOURS[place % (len(COLOURS) - 1)],
        "marker": MARKS[place % len(MARKS)],
        "linestyle": LINES[place % len(LINES)],
    }


def losses(rows: Rows, tasks: Sequence[str]) -> list[list[float]]:
    """Return what each task (row) loses by a merge with each other one (column), as a share of its own score."""
    alone = {row["tasks"][0]: row["scores"][row["tasks"][0]] for row in rows if row["study"] == "alone"}
    table = [[float("nan")] * len(tasks) for _ in tasks]
    for row in rows:
        if row["study"] == "pair":
            for task, other in (row["tasks"], row["tasks"][::-1]):
                lost = 1 - share(row["scores"][task], alone[task])
                table[tasks.index(task)][tasks.index(other)] = lost
    return table


def pairs(rows: Rows, tasks: Sequence[str], *, form: str = "svg") -> bytes:
    """Draw what each task loses when its expert is merged with one other."""
    table = losses(rows, tasks)
    names = list(tasks)
    limit = max([0.05, *(abs(value) for row in table for value in row if value == value)])

    def draw(plt: Any) -> Any:
        figure, axis = plt.subplots(figsize=(1.2 + 0.8 * len(names), 0.9 + 0.42 * len(names)))
        heat(plt, axis, table, rows=names, columns=names, low=-limit, high=limit, bar=True, colours="PuOr")
        axis.set_ylabel("task")
        axis.set_xlabel("merged with the expert of")
        axis.set_title("Share of the task's own score that the merge of two loses")
        return figure

    return drawn(draw, form=form)


def layers(rows: Rows, *, form: str = "svg") -> bytes:
    """Draw the experts' spectra, how far their spans coincide by layer, and which experts' do."""
    own = [row for row in rows if row["study"] == "layers"]
    names = list(own[0]["spectra"])
    apart = ~np.eye(len(names), dtype=bool)

    def draw(plt: Any) -> Any:
        figure, axes = plt.subplots(1, 3, figsize=(12.0, 3.4), width_ratios=(1, 1.1, 1.2))
        for place, name in enumerate(names):
            spectra = [np.array(row["spectra"][name]) for row in own if row["spectra"][name]]
            size = min(map(len, spectra), default=0)
            if size:
                shares = np.array([s[:size] / s[0] for s in spectra])
                axes[0].plot(range(1, size + 1), shares.mean(axis=0), label=name, markersize=3, **_style(place))
        axes[0].set_xlabel("singular value")
        axes[0].set_ylabel("over the largest, mean over layers")
        axes[0].set_ylim(0, 1.05)
        axes[0].xaxis.get_major_locator().set_params(integer=True)
        axes[0].legend()
        for place, (side, label) in enumerate((("right", "read from (A)"), ("left", "written to (B)"))):
            values = [np.array(row[side])[apart].mean() for row in own]
            axes[1].plot(range(len(own)), values, label=label, markersize=3, **_style(place))
        chance = [np.mean([len(s) for s in row["spectra"].values()]) / row["shape"][1] for row in own]
        axes[1].plot(range(len(own)), chance, color="#888888", linewidth=1, label="random spans read from")
        axes[1].set_xticks(range(len(own)), [_short(row["layer"]) for row in own], rotation=90, fontsize=6)
        axes[1].set_ylabel("overlap of two experts' spans, mean")
        axes[1].set_ylim(0, 1.4 * axes[1].get_ylim()[1])
        axes[1].legend(loc="upper right")
        mean = np.mean([np.array(row["cosine"]) for row in own], axis=0)
        heat(plt, axes[2], mean.tolist(), rows=names, columns=names, low=-1.0, high=1.0, colours="PuOr")
        axes[2].set_title("cosine of the changes, mean over layers")
        figure.tight_layout()
        return figure

    return drawn(draw, form=form)


def _short(layer: str) -> str:
    """Return the block's number and the ends of a layer's name."""
    parts = layer.split(".")
    number = next((part for part in parts if part.isdigit()), "")
    rest = [part for part in parts[parts.index(number) + 1 :] if part not in ("self", "dense")] if number else parts
    return f"{number} {'.'.join(rest[-2:])}"


def unseen(rows: Rows, *, form: str = "svg") -> bytes:
    """Draw what a task gets that no expert was trained on, with a head on few of its rows."""
    own = [row for row in rows if row["study"] == "unseen"]
    bodies = list(own[0]["bodies"])

    def draw(plt: Any) -> Any:
        figure, axis = plt.subplots(figsize=(1.5 + 1.25 * len(own), 3.2))
        for place, body in enumerate(bodies):
            style = _style(place)
            for task, row in enumerate(own):
                cell = row["bodies"][body]
                x = task + (place - (len(bodies) - 1) / 2) * 0.13
                axis.plot([x, x], cell["interval"], color=style["color"], linewidth=1.2)
                axis.plot(
                    x,
                    cell["value"],
                    color=style["color"],
                    marker=style["marker"],
                    markersize=5,
                    label=body if task == 0 else None,
                )
        axis.set_xticks(range(len(own)), [row["task"] for row in own])
        axis.set_ylabel("headline score")
        axis.set_title(f"A task left out, a new head on {own[0]['rows']} of its rows")
        axis.grid(axis="y", color="#eeeeee", linewidth=0.6)
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure

    return drawn(draw, form=form)
