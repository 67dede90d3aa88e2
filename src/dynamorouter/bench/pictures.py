"""Pictures of the arms: the matrix, scores with intervals, cost and quality, ranks, a router's choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynamorouter.bench.canvas import COLOURS, MARKS, drawn, heat

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


def group(arm: str) -> str:
    """Return the group of an arm."""
    family = arm.partition("/")[0]
    if family in ("router", "merge", "tuned"):
        return family
    if family in ("expert", "oracle", "mixture", "ensemble"):
        return "expert"
    return "trained" if arm in TRAINED else "none"


def look(arm: str) -> tuple[str, str]:
    """Return the colour and the mark of an arm's group."""
    place = [name for name, _ in FAMILIES].index(group(arm))
    return COLOURS[place], MARKS[place]


def _legend(plt: Any, axis: Any, arms: Sequence[str], **where: Any) -> None:
    there = {group(arm) for arm in arms}
    handles = [
        plt.Line2D([], [], color=COLOURS[i], marker=MARKS[i], linestyle="", label=label)
        for i, (name, label) in enumerate(FAMILIES)
        if name in there
    ]
    axis.legend(handles=handles, **where)


def matrix(found: Mapping[str, Any], *, form: str = "svg") -> bytes:
    """Draw the score of every expert on every task, over that of the task's own expert."""
    tasks = list(found["tasks"])
    names = [task for task in tasks if task in found["matrix"]]
    table = [
        [share(found["matrix"][name][task], found["matrix"].get(task, {}).get(task)) for task in tasks]
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


def share(value: float, whole: float | None) -> float:
    """Return a score over another; no number where there is nothing to divide by, which leaves a cell empty."""
    return value / whole if whole else float("nan")


def scores(found: Mapping[str, Any], *, form: str = "svg", least: int = 0) -> bytes:
    """Draw the mean score over tasks of every arm that answers all of them, with its interval."""
    arms = [arm for arm in found["arms"] if arm["mean"]][: least or None]

    def draw(plt: Any) -> Any:
        figure, axis = plt.subplots(figsize=(7.0, 0.9 + 0.19 * len(arms)))
        for place, arm in enumerate(reversed(arms)):
            colour, mark = look(arm["arm"])
            mean = arm["mean"]
            axis.plot([mean["low"], mean["high"]], [place, place], color=colour, linewidth=1.4)
            axis.plot(mean["value"], place, color=colour, marker=mark, markersize=5)
        axis.set_yticks(range(len(arms)), [arm["arm"] for arm in reversed(arms)], fontsize=8)
        axis.set_ylim(-0.7, len(arms) - 0.3)
        axis.grid(axis="x", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.set_xlabel(f"mean headline score over {len(found['tasks'])} tasks, {100 * found['level']:g} % interval")
        names = [arm["arm"] for arm in arms]
        _legend(plt, axis, names, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3)
        return figure

    return drawn(draw, form=form)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the places of points that no other beats in both cost (less) and quality (more), cheapest first."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    kept: list[int] = []
    for i in order:
        if not kept or points[i][1] > points[kept[-1]][1]:
            kept.append(i)
    return kept


def cost(found: Mapping[str, Any], *, form: str = "svg") -> bytes:
    """Draw quality against what is stored and against the time to answer a row, with the arms that none beats."""
    arms = [arm for arm in found["arms"] if arm["mean"]]
    axes_of = (
        ("bytes", "stored besides the base, MB (log scale)", 1e-6),
        ("work", "work to answer a row, bare base = 1", 1.0),
    )

    def draw(plt: Any) -> Any:
        figure, axes = plt.subplots(1, 2, figsize=(10.0, 4.2), sharey=True)
        for axis, (key, label, factor) in zip(axes, axes_of, strict=True):
            points = [(max(arm[key] * factor, 1e-3), arm["mean"]["value"]) for arm in arms]
            best = front(points)
            axis.step(
                [points[i][0] for i in best],
                [points[i][1] for i in best],
                where="post",
                color="#888888",
                linewidth=1,
                zorder=1,
            )
            for i, (x, y) in enumerate(points):
                colour, mark = look(arms[i]["arm"])
                axis.plot(x, y, color=colour, marker=mark, markersize=5, zorder=2)
            _annotate(axis, [(points[i], arms[i]["arm"]) for i in best])
            axis.set_xlabel(label)
            axis.grid(color="#eeeeee", linewidth=0.6)
            axis.set_axisbelow(True)
        axes[0].set_xscale("log")
        axes[0].set_ylabel("mean headline score")
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


def ranks(found: Mapping[str, Any], *, form: str = "svg") -> bytes:
    """Draw the critical difference diagram (Demsar, 2006): bars join arms that the tests do not tell apart."""
    ranking = found["ranking"]
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
        for place, (name, rank) in enumerate(order):
            left = place < half
            level = top - 0.3 * (place if left else len(order) - 1 - place)
            side = 0.6 if left else worst + 0.4
            colour, _ = look(name)
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


def routing(found: Mapping[str, Any], name: str, *, form: str = "svg") -> bytes:
    """Draw where a router sends the rows of each task, and how its confidence meets its accuracy."""
    router = found["routers"][name]
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
        largest = max(each["rows"] for each in bins)
        axes[1].plot([0, 1], [0, 1], color="#888888", linestyle="--", linewidth=1)
        axes[1].plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], color=COLOURS[0], linewidth=1)
        sizes = [8 + 80 * b["rows"] / largest for b in bins]
        axes[1].scatter([b["confidence"] for b in bins], [b["accuracy"] for b in bins], s=sizes, color=COLOURS[0])
        axes[1].set_xlabel("confidence")
        axes[1].set_ylabel("accuracy")
        axes[1].set_title(f"calibration error {router['ece']:.3f}")
        axes[1].set_xlim(0, 1.03)
        axes[1].set_ylim(0, 1.05)
        figure.tight_layout()
        return figure

    return drawn(draw, form=form)
