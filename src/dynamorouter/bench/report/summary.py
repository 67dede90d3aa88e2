"""From rows and items to what the reports say: scores with intervals, measures, comparisons, ranks.

Nothing is chosen on the test rows: the best merge is the one that scored highest on the validation rows. A value over
several seeds is their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynamorouter.bench.arms.base import arms as families
from dynamorouter.bench.arms.base import match_arms
from dynamorouter.bench.arms.routers import OWN
from dynamorouter.bench.results import ROWS, RowFile, read_example_records, row_digest
from dynamorouter.config.schema import Config
from dynamorouter.errors import DataError
from dynamorouter.metrics.bootstrap import Array
from dynamorouter.metrics.paired import Logs, holm, mcnemar, rank_arms

ORACLE, BASE, NAIVE = "oracle", "base", "merge/factor_average"
NO_WAY = 1e-9
"""A gain of the experts over the bare base up to this is none."""
BINARY = ("accuracy", "squad_em", "text_match", "final_number", "pass_at_1")
"""Primary metrics that are right or wrong for each item, so that McNemar's test applies."""


def summarise(config: Config, out: Path) -> dict[str, Any]:
    """Return everything that the reports show of the arms."""
    names, _ = match_arms(config.bench.arms, list(config.task))
    seeds = range(config.seed, config.seed + config.bench.seeds)
    digest = row_digest(config)
    rows = [
        row
        for row in RowFile(out / ROWS)
        if row["config_hash"] == digest and row["seed"] in seeds and row["arm"] in names
    ]
    if not rows:
        raise DataError(f"{out} holds no rows of this comparison; run 'dynamorouter bench' first")
    logs = read_logs(config, rows, out)
    order = [name for name in dict.fromkeys(row["arm"] for row in rows) if name in logs.numbers]
    arms = [_arm(logs, name, [row for row in rows if row["arm"] == name]) for name in order]
    best = {"merge": best_arm(arms, "merge/", data_free=True), "tuned": best_arm(arms, "tuned/")}
    reference = next((name for name in (f"router/{OWN}", f"router/{config.router.kind}") if name in order), None)
    return {
        "recipe": config.recipe,
        "config_hash": digest,
        "seeds": sorted({row["seed"] for row in rows}),
        "tasks": logs.tasks,
        "metrics": dict(logs.metrics),
        "items": {
            task: int(logs.numbers[order[0]][task].shape[1]) for task in logs.tasks if task in logs.numbers[order[0]]
        },
        "seen": {
            "kept": config.bench.keep_seen,
            "left_out": {row["task"]: row["seen_left_out"] for row in rows if row.get("seen_left_out")},
            "unknown": sorted({row["task"] for row in rows if row.get("seen_unknown")}),
        },
        "level": config.bench.level,
        "data": {"source": config.data.source, "fingerprint": rows[0]["data_fingerprint"]},
        "experts": {str(row["seed"]): row["experts"] for row in rows},
        "versions": rows[-1]["versions"],
        "arms": sorted(arms, key=lambda arm: -(arm["mean"]["value"] if arm["mean"] else -1)),
        "matrix": _matrix(logs),
        "best": best,
        "reference": reference,
        "comparisons": _comparisons(logs, order, best, reference),
        "ranking": _ranking(config, logs),
        "routers": {
            row["arm"]: row["notes"]["router"]
            for row in rows
            if "router" in row["notes"] and row["seed"] == config.seed
        },
        "words": {
            f"{row['arm']} on {row['task']}": row["notes"]["top_features"]
            for row in rows
            if "top_features" in row["notes"] and row["seed"] == config.seed
        },
    }


def read_logs(config: Config, rows: Sequence[dict[str, Any]], out: Path) -> Logs:
    """Read the items of all arms that have a row for every seed.

    Raises:
        DataError: two arms answered other items, or in another order.
    """
    seeds = sorted({row["seed"] for row in rows})
    tasks = [task for task in config.task if any(row["task"] == task for row in rows)]
    metrics = {task: next(row["metric"] for row in rows if row["task"] == task) for task in tasks}
    ids: dict[str, list[str]] = {}
    by_arm: dict[str, dict[str, dict[int, Array]]] = {}
    for row in rows:
        example_ids, numbers = read_example_records(out / row["items"])
        if ids.setdefault(row["task"], example_ids) != example_ids:
            raise DataError(f"{row['items']} holds other items than the arms before it; remove the row and resume")
        by_arm.setdefault(row["arm"], {}).setdefault(row["task"], {})[row["seed"]] = numbers
    complete: dict[str, dict[str, Array]] = {}
    for arm, by_task in by_arm.items():
        if all(sorted(by_seed) == seeds for by_seed in by_task.values()):
            complete[arm] = {
                task: np.stack([by_task[task][seed] for seed in seeds]) for task in tasks if task in by_task
            }
    settings = config.bench
    return Logs(complete, metrics, settings.resamples, settings.permutations, settings.level, config.seed)


def best_arm(arms: Sequence[dict[str, Any]], prefix: str, *, data_free: bool = False) -> str | None:
    """Return the arm of a family that scored highest on the validation rows, ``None`` where none was scored there."""
    candidates = [
        arm
        for arm in arms
        if arm["arm"].startswith(prefix)
        and arm["select"] is not None
        and arm["mean"] is not None
        and not (data_free and arm["train_rows"])
    ]
    return max(candidates, key=lambda arm: arm["select"])["arm"] if candidates else None


def _arm(logs: Logs, name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return scores, measures and cost of one arm."""
    tasks = {}
    for task in logs.tasks:
        if task not in logs.numbers[name]:
            continue
        task_rows = [row for row in rows if row["task"] == task]
        interval = logs.interval(name, task).to_json()
        tasks[task] = {**interval, "seeds": [row["value"] for row in task_rows], **_measures(logs, name, task)}
    relatives = {task: cell["relative"] for task, cell in tasks.items() if cell["relative"] is not None}
    complete = logs.complete(name)
    worst = min(relatives, key=lambda task: relatives[task]) if complete and relatives else None
    selects = [row["select"] for row in rows if row["select"] is not None]
    has_ends = all(end in logs.numbers and logs.complete(end) for end in (BASE, ORACLE))
    return {
        "arm": name,
        "about": families.get(name.partition("/")[0]).about,
        "told": rows[0]["told"],
        "tasks": tasks,
        "mean": logs.interval(name).to_json() if complete else None,
        "relative": float(np.mean(list(relatives.values()))) if complete and relatives else None,
        "gap": recovered(logs.mean(name), logs.mean(BASE), logs.mean(ORACLE)) if complete and has_ends else None,
        "worst": {"task": worst, "value": relatives[worst] if worst else None},
        "parameters": max(row["parameters"] for row in rows),
        "bytes": max(row["bytes"] for row in rows),
        "train_rows": rows[0]["train_rows"],
        "evaluations": rows[0]["evaluations"],
        "select": float(np.mean(selects)) if selects else None,
        "fit_seconds": _fit_seconds(rows),
        "work": rows[0]["work"],
        "options": {str(row["seed"]): row["options"] for row in rows},
    }


def _fit_seconds(rows: Sequence[dict[str, Any]]) -> float:
    """Return the seconds that fitting took, mean over seeds: once for all tasks, and then for each task."""
    seeds = {row["seed"] for row in rows}
    seconds_by_seed = [[row["seconds"] for row in rows if row["seed"] == seed] for seed in seeds]
    totals = [max(s["fit"] for s in tasks) + sum(s["prepare"] for s in tasks) for tasks in seconds_by_seed]
    return float(np.mean(totals))


def _measures(logs: Logs, name: str, task: str) -> dict[str, Any]:
    """Return the score over the expert's, and the share of the gap from the bare base to the expert."""
    value = logs.score(name, task)
    top = logs.score(ORACLE, task) if task in logs.numbers.get(ORACLE, {}) else None
    low = logs.score(BASE, task) if task in logs.numbers.get(BASE, {}) else None
    gap = None if top is None or low is None else recovered(value, low, top)
    return {"relative": value / top if top else None, "gap": gap}


def recovered(value: float, low: float, top: float) -> float | None:
    """Return the share of the way from ``low`` to ``top`` at which ``value`` lies; ``None`` where there is no way up.

    Over several tasks it is taken of the means, which is the ratio of the sums: the mean of the tasks' own shares
    would be ruled by tasks whose expert is hardly better than the base, and could be negative for an arm that is
    better than the base.
    """
    return (value - low) / (top - low) if top - low > NO_WAY else None


def _matrix(logs: Logs) -> dict[str, dict[str, float]]:
    """Return the score of every expert on every task."""
    return {
        name.partition("/")[2]: {task: logs.score(name, task) for task in by_task}
        for name, by_task in logs.numbers.items()
        if name.startswith("expert/")
    }


def _comparisons(
    logs: Logs, order: Sequence[str], best: dict[str, str | None], reference: str | None
) -> dict[str, dict[str, Any]]:
    """Compare what was planned to be compared; Holm's correction is over all tests of one family."""
    complete = [name for name in order if logs.complete(name)]
    merges = [name for name in complete if name.startswith("merge/") and name != NAIVE]
    planned: dict[str, tuple[str, list[tuple[str, str]]]] = {
        "router": (
            "the learned router against the oracle, the best merges (chosen on validation rows) and what one could "
            "train",
            [
                (reference, rival)
                for rival in dict.fromkeys([ORACLE, best["merge"], best["tuned"], "joint", "full", "probe"])
                if rival in complete and reference in complete
            ],
        ),
        "merges": (
            "merges with their own defaults against the average of the factors",
            [(name, NAIVE) for name in merges if NAIVE in complete],
        ),
        "oracle": (
            "every arm against each task's own expert",
            [(name, ORACLE) for name in complete if ORACLE in complete and name != ORACLE],
        ),
    }
    comparisons = {}
    for family, (about, pairs) in planned.items():
        overall = [_compare(logs, arm, other, None) for arm, other in pairs]
        by_task = (
            [_compare(logs, arm, other, task) for arm, other in pairs for task in logs.tasks]
            if family != "oracle"
            else []
        )
        for tests in (overall, by_task):
            for test, adjusted in zip(tests, holm([test["p"] for test in tests]), strict=True):
                test["p_holm"] = adjusted
        comparisons[family] = {"about": about, "overall": overall, "by_task": by_task}
    return comparisons


def _compare(logs: Logs, arm: str, reference: str, task: str | None) -> dict[str, Any]:
    """Return one paired comparison; McNemar's p-value is the largest of the seeds'."""
    comparison = {
        "first": arm,
        "second": reference,
        "task": task,
        **logs.difference(arm, reference, task).to_json(),
        "p": logs.p_value(arm, reference, task),
    }
    if task is not None and logs.metrics[task] in BINARY:
        pairs = zip(logs.numbers[arm][task], logs.numbers[reference][task], strict=True)
        comparison["mcnemar"] = max(mcnemar(ours[:, 0] > 0.5, theirs[:, 0] > 0.5) for ours, theirs in pairs)
    return comparison


def _ranking(config: Config, logs: Logs) -> dict[str, Any] | None:
    """Rank the arms of the diagram; ``None`` where there are too few arms or tasks."""
    names = [name for name in match_arms(config.bench.diagram, list(config.task))[0] if name in logs.numbers]
    complete = [name for name in names if logs.complete(name)]
    if len(complete) < 2 or len(logs.tasks) < 2:
        return None
    scores = {name: [logs.score(name, task) for task in logs.tasks] for name in complete}
    ranking = rank_arms(scores, level=config.bench.level)
    return {
        "ranks": ranking.ranks,
        "critical": ranking.critical,
        "p": ranking.p_value,
        "tasks": ranking.tasks,
        "cliques": ranking.cliques,
    }
