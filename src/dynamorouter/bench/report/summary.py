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
from dynamorouter.bench.results import ROWS, RowFile, read_items, row_digest
from dynamorouter.config.schema import Config
from dynamorouter.errors import DataError
from dynamorouter.metrics.bootstrap import Array
from dynamorouter.metrics.paired import Logs, holm, mcnemar, rank_arms

ORACLE, BASE, NAIVE = "oracle", "base", "merge/factor_average"
BINARY = ("accuracy", "squad_em", "text_match", "final_number", "pass_at_1")
"""Headline metrics that are right or wrong for each item, so that McNemar's test applies."""


def summarise(config: Config, out: Path) -> dict[str, Any]:
    """Return everything that the reports show of the arms."""
    wanted, _ = match_arms(config.bench.arms, list(config.task))
    seeds = range(config.seed, config.seed + config.bench.seeds)
    digest = row_digest(config)
    rows = [
        row
        for row in RowFile(out / ROWS)
        if row["config_hash"] == digest and row["seed"] in seeds and row["arm"] in wanted
    ]
    if not rows:
        raise DataError(f"{out} holds no rows of this comparison; run 'dynamorouter bench' first")
    logs = read_logs(config, rows, out)
    order = [name for name in dict.fromkeys(row["arm"] for row in rows) if name in logs.numbers]
    found = [_arm(logs, name, [row for row in rows if row["arm"] == name]) for name in order]
    best = {"merge": chosen(found, "merge/", data_free=True), "tuned": chosen(found, "tuned/")}
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
        "level": config.bench.level,
        "data": {"source": config.data.source, "fingerprint": rows[0]["data_fingerprint"]},
        "experts": {str(row["seed"]): row["experts"] for row in rows},
        "versions": rows[-1]["versions"],
        "arms": sorted(found, key=lambda arm: -(arm["mean"]["value"] if arm["mean"] else -1)),
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
    found: dict[str, dict[str, dict[int, Array]]] = {}
    for row in rows:
        own, numbers = read_items(out / row["items"])
        if ids.setdefault(row["task"], own) != own:
            raise DataError(f"{row['items']} holds other items than the arms before it; remove the row and resume")
        found.setdefault(row["arm"], {}).setdefault(row["task"], {})[row["seed"]] = numbers
    whole: dict[str, dict[str, Array]] = {}
    for arm, by_task in found.items():
        if all(sorted(by_seed) == seeds for by_seed in by_task.values()):
            whole[arm] = {task: np.stack([by_task[task][seed] for seed in seeds]) for task in tasks if task in by_task}
    settings = config.bench
    return Logs(whole, metrics, settings.resamples, settings.permutations, settings.level, config.seed)


def chosen(found: Sequence[dict[str, Any]], prefix: str, *, data_free: bool = False) -> str | None:
    """Return the arm of a family that scored highest on the validation rows, ``None`` where none was scored there."""
    able = [
        arm
        for arm in found
        if arm["arm"].startswith(prefix)
        and arm["select"] is not None
        and arm["mean"] is not None
        and not (data_free and arm["train_rows"])
    ]
    return max(able, key=lambda arm: arm["select"])["arm"] if able else None


def _arm(logs: Logs, name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return scores, measures and cost of one arm."""
    tasks = {}
    for task in logs.tasks:
        if task not in logs.numbers[name]:
            continue
        own = [row for row in rows if row["task"] == task]
        interval = logs.interval(name, task).to_json()
        tasks[task] = {**interval, "seeds": [row["value"] for row in own], **_measures(logs, name, task)}
    relatives = {task: cell["relative"] for task, cell in tasks.items() if cell["relative"] is not None}
    whole = logs.complete(name)
    worst = min(relatives, key=lambda task: relatives[task]) if whole and relatives else None
    selects = [row["select"] for row in rows if row["select"] is not None]
    return {
        "arm": name,
        "about": families.get(name.partition("/")[0]).about,
        "told": rows[0]["told"],
        "tasks": tasks,
        "mean": logs.interval(name).to_json() if whole else None,
        "relative": float(np.mean(list(relatives.values()))) if whole and relatives else None,
        "gap": _mean([cell["gap"] for cell in tasks.values()]) if whole else None,
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
    own = [[row["seconds"] for row in rows if row["seed"] == seed] for seed in seeds]
    return float(np.mean([max(each["fit"] for each in one) + sum(each["prepare"] for each in one) for one in own]))


def _measures(logs: Logs, name: str, task: str) -> dict[str, Any]:
    """Return the score over the expert's, and the share of the gap from the bare base to the expert."""
    value = logs.score(name, task)
    top = logs.score(ORACLE, task) if task in logs.numbers.get(ORACLE, {}) else None
    low = logs.score(BASE, task) if task in logs.numbers.get(BASE, {}) else None
    gap = None if top is None or low is None or abs(top - low) < 1e-9 else (value - low) / (top - low)
    return {"relative": value / top if top else None, "gap": gap}


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def _matrix(logs: Logs) -> dict[str, dict[str, float]]:
    """Return the score of every expert on every task."""
    return {
        name.partition("/")[2]: {task: logs.score(name, task) for task in own}
        for name, own in logs.numbers.items()
        if name.startswith("expert/")
    }


def _comparisons(
    logs: Logs, order: Sequence[str], best: dict[str, str | None], reference: str | None
) -> dict[str, dict[str, Any]]:
    """Compare what was planned to be compared; Holm's correction is over all tests of one family."""
    whole = [name for name in order if logs.complete(name)]
    merges = [name for name in whole if name.startswith("merge/") and name != NAIVE]
    planned: dict[str, tuple[str, list[tuple[str, str]]]] = {
        "router": (
            "the learned router against the oracle, the best merges (chosen on validation rows) and what one could "
            "train",
            [
                (reference, other)
                for other in dict.fromkeys([ORACLE, best["merge"], best["tuned"], "joint", "full", "probe"])
                if other in whole and reference in whole
            ],
        ),
        "merges": (
            "merges with their own defaults against the average of the factors",
            [(name, NAIVE) for name in merges if NAIVE in whole],
        ),
        "oracle": (
            "every arm against each task's own expert",
            [(name, ORACLE) for name in whole if ORACLE in whole and name != ORACLE],
        ),
    }
    found = {}
    for family, (about, pairs) in planned.items():
        overall = [_compare(logs, first, second, None) for first, second in pairs]
        by_task = (
            [_compare(logs, first, second, task) for first, second in pairs for task in logs.tasks]
            if family != "oracle"
            else []
        )
        for tests in (overall, by_task):
            for test, adjusted in zip(tests, holm([test["p"] for test in tests]), strict=True):
                test["p_holm"] = adjusted
        found[family] = {"about": about, "overall": overall, "by_task": by_task}
    return found


def _compare(logs: Logs, first: str, second: str, task: str | None) -> dict[str, Any]:
    """Return one paired comparison; McNemar's p-value is the largest of the seeds'."""
    found = {
        "first": first,
        "second": second,
        "task": task,
        **logs.difference(first, second, task).to_json(),
        "p": logs.p_value(first, second, task),
    }
    if task is not None and logs.metrics[task] in BINARY:
        pairs = zip(logs.numbers[first][task], logs.numbers[second][task], strict=True)
        found["mcnemar"] = max(mcnemar(one[:, 0] > 0.5, other[:, 0] > 0.5) for one, other in pairs)
    return found


def _ranking(config: Config, logs: Logs) -> dict[str, Any] | None:
    """Rank the arms of the diagram; ``None`` where there are too few arms or tasks."""
    wanted = [name for name in match_arms(config.bench.diagram, list(config.task))[0] if name in logs.numbers]
    whole = [name for name in wanted if logs.complete(name)]
    if len(whole) < 2 or len(logs.tasks) < 2:
        return None
    scores = {name: [logs.score(name, task) for task in logs.tasks] for name in whole}
    ranking = rank_arms(scores, level=config.bench.level)
    return {
        "ranks": ranking.ranks,
        "critical": ranking.critical,
        "p": ranking.p_value,
        "tasks": ranking.tasks,
        "cliques": ranking.cliques,
    }
