"""Pictures of the arms: the matrix, scores with intervals, cost and quality, ranks, a router's choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynamorouter.report.style import COLOURS, MARKS, drawn, heat, line_style

FAMILIES = (
    ("router", "routers"),
    ("merge", "merges, defaults"),
    ("tuned", "merges, tuned"),
    ("expert", "single experts"),
    ("trained", "trained for all tasks"),
    ("none", "baselines"),
)
"""Groups that share a colour, in the legend's order."""
TRAINED = ("joint", "full", "calibration_lora", "probe")


def group_of(arm: str) -> str:
    """Return the group of an arm."""
    family = arm.partition("/")[0]
    if family in ("router", "merge", "tuned"):
        return family
    if family in ("expert", "oracle", "mixture", "ensemble"):
        return "expert"
    return "trained" if arm in TRAINED else "none"


def marker_of(arm: str) -> tuple[str, str]:
    """Return the colour and the mark of an arm's group."""
    index = [name for name, _ in FAMILIES].index(group_of(arm))
    return COLOURS[index], MARKS[index]


def _legend(plt: Any, axis: Any, arms: Sequence[str], **where: Any) -> None:
    groups = {group_of(arm) for arm in arms}
    handles = [
        plt.Line2D([], [], color=COLOURS[i], marker=MARKS[i], linestyle="", label=label)
        for i, (name, label) in enumerate(FAMILIES)
        if name in groups
    ]
    axis.legend(handles=handles, **where)


def matrix(summary: Mapping[str, Any], *, form: str = "svg") -> bytes:
    """Draw the score of every expert on every task, over that of the task's own expert."""
    tasks = list(summary["tasks"])
    names = [task for task in tasks if task in summary["matrix"]]
    table = [
        [share(summary["matrix"][name][task], summary["matrix"].get(task, {}).get(task)) for task in tasks]
        for name in names
    ]

    def draw(plt: Any) -> Any:
        figure, axis = plt.subplots(figsize=(1.2 + 0.8 * len(tasks), 0.9 + 0.42 * len(names)))
        heat(plt, axis, table, rows=names, columns=tasks, low=0.0, high=1.0, bar=True)
        axis.set_ylabel("expert")
        axis.set_xlabel("task, under its own head")
        axis.set_title("Score over that of the task's own expert")
        return figure

    return drawn(draw, form=form)


def share(value: float, reference: float | None) -> float:
    """Return a score over another; no number where there is nothing to divide by, which leaves a cell empty."""
    return value / reference if reference else float("nan")


def scores(summary: Mapping[str, Any], *, form: str = "svg", least: int = 0) -> bytes:
    """Draw the mean score over tasks of every arm that answers all of them, with its interval."""
    arms = [arm for arm in summary["arms"] if arm["mean"]][: least or None]

    def draw(plt: Any) -> Any:
        figure, axis = plt.subplots(figsize=(7.0, 0.9 + 0.19 * len(arms)))
        for row, arm in enumerate(reversed(arms)):
            colour, mark = marker_of(arm["arm"])
            mean = arm["mean"]
            axis.plot([mean["low"], mean["high"]], [row, row], color=colour, linewidth=1.4)
            axis.plot(mean["value"], row, color=colour, marker=mark, markersize=5)
        axis.set_yticks(range(len(arms)), [arm["arm"] for arm in reversed(arms)], fontsize=8)
        axis.set_ylim(-0.7, len(arms) - 0.3)
        axis.grid(axis="x", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.set_xlabel(f"mean primary score over {len(summary['tasks'])} tasks, {100 * summary['level']:g} % interval")
        names = [arm["arm"] for arm in arms]
        _legend(plt, axis, names, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3)
        return figure

    return drawn(draw, form=form)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the places of points that no other beats in both cost (less) and quality (more), cheapest first."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    best: list[int] = []
    for i in order:
        if not best or points[i][1] > points[best[-1]][1]:
            best.append(i)
    return best


def cost(summary: Mapping[str, Any], *, form: str = "svg") -> bytes:
    """Draw quality against what is stored and against the time to answer a row, with the arms that none beats."""
    arms = [arm for arm in summary["arms"] if arm["mean"]]
    axes_of = (
        ("bytes", "stored besides the base, MB (log scale)", 1e-6),
        ("work", "work to answer a row, bare base = 1", 1.0),
    )

    def draw(plt: Any) -> Any:
        figure, axes = plt.subplots(1, 2, figsize=(10.0, 4.2), sharey=True)
        for axis, (key, label, factor) in zip(axes, axes_of, strict=True):
            points = [(max(arm[key] * factor, 1e-3), arm["mean"]["value"]) for arm in arms]
            best = pareto_front(points)
            axis.step(
                [points[i][0] for i in best],
                [points[i][1] for i in best],
                where="post",
                color="#888888",
                linewidth=1,
                zorder=1,
            )
            for i, (x, y) in enumerate(points):
                colour, mark = marker_of(arms[i]["arm"])
                axis.plot(x, y, color=colour, marker=mark, markersize=5, zorder=2)
            _annotate(axis, [(points[i], arms[i]["arm"]) for i in best])
            axis.set_xlabel(label)
            axis.grid(color="#eeeeee", linewidth=0.6)
            axis.set_axisbelow(True)
        axes[0].set_xscale("log")
        axes[0].set_ylabel("mean primary score")
        _legend(plt, axes[1], [arm["arm"] for arm in arms], loc="lower right")
        figure.tight_layout()
        return figure

    return drawn(draw, form=form)


def _annotate(axis: Any, points: Sequence[tuple[tuple[float, float], str]]) -> None:
    """Name points to their right, turn about above and below, so that neighbours stay apart."""
    for i, ((x, y), label) in enumerate(points):
        up = i % 2 == 0
        axis.annotate(
            label,
            (x, y),
            xytext=(4, 5) if up else (5, -10),
            textcoords="offset points",
            fontsize=7,
        )


def ranks(summary: Mapping[str, Any], *, form: str = "svg") -> bytes:
    """Draw the critical difference diagram (Demsar, 2006): bars join arms that the tests do not tell apart."""
    ranking = summary["ranking"]
    order = list(ranking["ranks"].items())
    half = (len(order) + 1) // 2
    worst = len(order)

    def draw(plt: Any) -> Any:
        height = 1.1 + 0.2 * half + 0.12 * len(ranking["cliques"])
        figure, axis = plt.subplots(figsize=(8.0, height))
        top = -0.35 - 0.22 * len(ranking["cliques"])
        axis.hlines(0, 1, worst, color="black", linewidth=1)
        for tick in range(1, worst + 1):
            axis.vlines(tick, 0, 0.08, color="black", linewidth=1)
            axis.text(tick, 0.14, str(tick), ha="center", va="bottom", fontsize=8)
        for index, (name, rank) in enumerate(order):
            left = index < half
            level = top - 0.3 * (index if left else len(order) - 1 - index)
            side = 0.6 if left else worst + 0.4
            colour, _ = marker_of(name)
            axis.plot([rank, rank, side], [0, level, level], color=colour, linewidth=0.9)
            label = f"{name}  {rank:.2f}" if left else f"{rank:.2f}  {name}"
            axis.text(
                side + (-0.1 if left else 0.1), level, label, ha="right" if left else "left", va="center", fontsize=8
            )
        for i, clique in enumerate(ranking["cliques"]):
            ends = ranking["ranks"][clique[0]], ranking["ranks"][clique[-1]]
            axis.hlines(-0.2 - 0.22 * i, ends[0] - 0.06, ends[1] + 0.06, color="black", linewidth=3)
        width = min(ranking["critical"], worst - 1)
        axis.hlines(0.75, 1, 1 + width, color="black", linewidth=1.5)
        label = f"critical difference {ranking['critical']:.2f}"
        axis.text(1 + width / 2, 0.85, label, ha="center", va="bottom", fontsize=8)
        axis.set_xlim(0.4, worst + 0.6)
        axis.set_ylim(top - 0.3 * half, 1.25)
        axis.axis("off")
        return figure

    return drawn(draw, form=form)


def routing(summary: Mapping[str, Any], name: str, *, form: str = "svg") -> bytes:
    """Draw where a router sends the rows of each task, and how its confidence meets its accuracy."""
    router = summary["routers"][name]
    tasks = list(router["tasks"])
    table = [[cell / max(1, sum(row)) for cell in row] for row in router["confusion"]]

    def draw(plt: Any) -> Any:
        figure, axes = plt.subplots(
            1, 2, figsize=(max(6.0, 3.2 + 0.75 * len(tasks)), 1.4 + 0.42 * len(tasks)), width_ratios=(1.5, 1)
        )
        heat(plt, axes[0], table, rows=tasks, columns=tasks, low=0.0, high=1.0)
        axes[0].set_ylabel("task of the row")
        axes[0].set_xlabel("expert chosen")
        axes[0].set_title("share of each task's rows", loc="left")
        bins = router["reliability"]
        largest = max(interval["rows"] for interval in bins)
        axes[1].plot([0, 1], [0, 1], color="#888888", linestyle="--", linewidth=1)
        axes[1].plot(
            [interval["confidence"] for interval in bins],
            [interval["accuracy"] for interval in bins],
            color=COLOURS[0],
            linewidth=1,
        )
        sizes = [8 + 80 * interval["rows"] / largest for interval in bins]
        axes[1].scatter(
            [interval["confidence"] for interval in bins],
            [interval["accuracy"] for interval in bins],
            s=sizes,
            color=COLOURS[0],
        )
        axes[1].set_xlabel("confidence")
        axes[1].set_ylabel("accuracy")
        axes[1].set_title(f"calibration error {router['ece']:.3f}")
        axes[1].set_xlim(0, 1.03)
        axes[1].set_ylim(0, 1.05)
        figure.tight_layout()
        return figure

    return drawn(draw, form=form)


SWEEPS = (
    ("coefficient", "coefficient of task arithmetic"),
    ("density", "density of TIES"),
    ("rank", "rank of the mean of the changes (log scale)"),
)


Rows = Sequence[Mapping[str, Any]]


def sweeps(rows: Rows, *, form: str = "svg") -> bytes:
    """Draw each task's score over its expert's along every sweep."""
    alone = {row["tasks"][0]: row["scores"][row["tasks"][0]] for row in rows if row["study"] == "alone"}
    swept = [(study, label) for study, label in SWEEPS if any(row["study"] == study for row in rows)]

    def draw(plt: Any) -> Any:
        figure, axes = plt.subplots(1, len(swept), figsize=(3.3 * len(swept), 3.0), sharey=True, squeeze=False)
        for axis, (study, label) in zip(axes[0], swept, strict=True):
            points = sorted((row for row in rows if row["study"] == study), key=lambda row: row["at"])
            positions = [row["at"] for row in points]
            for index, task in enumerate(points[0]["scores"]):
                values = [share(row["scores"][task], alone.get(task, 1.0)) for row in points]
                axis.plot(positions, values, label=task, linewidth=1.2, markersize=4, **line_style(index))
            if study == "rank":
                axis.set_xscale("log", base=2)
                axis.set_xticks(positions, [str(rank) for rank in positions])
            axis.axhline(1.0, color="#888888", linewidth=0.8)
            axis.set_xlabel(label)
            axis.grid(color="#eeeeee", linewidth=0.6)
        axes[0][0].set_ylabel("score over the expert's" if alone else "score")
        axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.tight_layout()
        return figure

    return drawn(draw, form=form)


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


def unseen(rows: Rows, *, form: str = "svg") -> bytes:
    """Draw what a task gets that no expert was trained on, with a head on few of its rows."""
    task_rows = [row for row in rows if row["study"] == "unseen"]
    bodies = list(task_rows[0]["bodies"])

    def draw(plt: Any) -> Any:
        figure, axis = plt.subplots(figsize=(1.5 + 1.25 * len(task_rows), 3.2))
        for index, body in enumerate(bodies):
            style = line_style(index)
            for task, row in enumerate(task_rows):
                cell = row["bodies"][body]
                x = task + (index - (len(bodies) - 1) / 2) * 0.13
                axis.plot([x, x], cell["interval"], color=style["color"], linewidth=1.2)
                axis.plot(
                    x,
                    cell["value"],
                    color=style["color"],
                    marker=style["marker"],
                    markersize=5,
                    label=body if task == 0 else None,
                )
        axis.set_xticks(range(len(task_rows)), [row["task"] for row in task_rows])
        axis.set_ylabel("primary score")
        axis.set_title(f"A task left out, a new head on {task_rows[0]['rows']} of its rows")
        axis.grid(axis="y", color="#eeeeee", linewidth=0.6)
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure

    return drawn(draw, form=form)
