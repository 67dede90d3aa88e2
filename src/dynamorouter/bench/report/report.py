"""The reports of a comparison: ``bench.json``, ``report.md`` with its pictures, and ``report.html`` in one piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynamorouter.bench.report import figures, layer_figures
from dynamorouter.bench.report.summary import NAIVE, ORACLE, summarise
from dynamorouter.bench.results import RowFile
from dynamorouter.bench.studies import STUDIES
from dynamorouter.config.schema import Config
from dynamorouter.report.document import Block, Bullets, Heading, Picture, Table, Text, to_html, to_markdown
from dynamorouter.utils.files import write_json, writing

RESULT, PICTURES = "bench.json", "pictures"


def write_reports(config: Config, out: Path) -> dict[str, Any]:
    """Write the reports from the rows that are there, and return what they show."""
    summary = summarise(config, out)
    summary["studies"] = list(RowFile(out / STUDIES))
    write_json(out / RESULT, summary)
    blocks = report(summary)
    for block in blocks:
        if isinstance(block, Picture):
            with writing(out / PICTURES / f"{block.name}.svg") as temporary:
                temporary.write_bytes(block.image)
    for name, text in (
        ("report.md", to_markdown(blocks, folder=PICTURES)),
        ("report.html", to_html(blocks, title=f"{summary['recipe']}: the comparison")),
    ):
        with writing(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return summary


def report(summary: Mapping[str, Any]) -> list[Block]:
    """Return the report as blocks."""
    blocks: list[Block] = [
        Heading(f"{summary['recipe']}: route, merge, or keep apart?", 1),
        Text(opening(summary)),
        Heading("Answers"),
        Bullets(findings_of(summary)),
        Heading("All arms"),
        Text(
            "Mean over tasks of the primary score with its interval; the mean over tasks of the score over the "
            "expert's; the share of the gap between the means of base and experts that is recovered; the worst task by "
            "score over the expert's. Work is that of answering a row over the bare base's, in multiplications of its "
            "blocks; what is one change for all rows is added to the weights. A dash: the arm cannot answer every task."
        ),
        main_table(summary),
        Picture("scores", figures.scores(summary), "Mean score of every arm with its interval"),
        task_table(summary),
    ]
    if summary["matrix"]:
        blocks += [
            Heading("Experts on each other's tasks"),
            Picture("matrix", figures.matrix(summary), "Every expert on every task, over the task's own expert"),
        ]
    blocks += _compared(summary)
    if summary["ranking"]:
        about = (
            f"Mean ranks over {summary['ranking']['tasks']} tasks, the best on the left; bars join arms that Nemenyi's "
            f"test does not tell apart; Friedman's test p = {summary['ranking']['p']:.2g}"
        )
        blocks += [Heading("Ranks"), Picture("ranks", figures.ranks(summary), about)]
    blocks += [Heading("Cost and quality"), Picture("cost", figures.cost(summary), COST)]
    name = summary["reference"] if summary["reference"] in summary["routers"] else next(iter(summary["routers"]), None)
    if name:
        picture = figures.routing(summary, name)
        blocks += [Heading("Routing"), Picture("routing", picture, f"Confusion and calibration of {name}")]
        blocks.append(router_table(summary))
    blocks += _studied(summary)
    blocks += [Heading("How it was done"), Bullets(method(summary)), _about_arms(summary), *_words(summary)]
    return blocks


COST = (
    "Mean score against what is stored and against the work for a row; the line joins the arms that none beats in both"
)


def opening(summary: Mapping[str, Any]) -> str:
    """Return in a sentence what was compared."""
    items = ", ".join(
        f"{task} ({metric}, {summary['items'].get(task, '-')} rows)" for task, metric in summary["metrics"].items()
    )
    seeds = len(summary["seeds"])
    return (
        f"{len(summary['arms'])} arms on the same rows of {len(summary['tasks'])} tasks, "
        f"{seeds} seed{'s' * (seeds > 1)}: {items}. "
        f"Data: {summary['data']['source']}. {_seen(summary['seen'])}"
    )


def _seen(seen: Mapping[str, Any]) -> str:
    """Return a sentence on rows that the experts may have learned from."""
    if seen["kept"]:
        return "Rows that the experts have learned from were kept among them (bench.keep_seen)."
    counts = ", ".join(f"{count} of {task}" for task, count in seen["left_out"].items())
    left_out = f" Left out, since the experts have learned from them: {counts}." if counts else ""
    unknown = ", ".join(seen["unknown"])
    if unknown:
        return f"What {unknown} learned from is not known, so these rows may be among it.{left_out}"
    return f"No choice was made on these rows.{left_out}"


def findings_of(summary: Mapping[str, Any]) -> list[str]:
    """Return what the comparison says of the three questions that it is made for, with intervals."""
    findings = []
    compared = {
        (test["first"], test["second"], test["task"]): test
        for family in summary["comparisons"].values()
        for test in (*family["overall"], *family["by_task"])
    }
    router, best = summary["reference"], summary["best"]
    if (router, ORACLE, None) in compared:
        oracle = next(arm for arm in summary["arms"] if arm["arm"] == ORACLE)["mean"]["value"]
        test = compared[router, ORACLE, None]
        share = f"{100 * (1 + test['value'] / oracle):.2f} % of " if oracle else ""
        findings.append(f"{router}, not told the task, gets {share}the oracle's mean score: {_test(test)}.")
    for kind, label in (("merge", "best merge without data"), ("tuned", "best tuned merge")):
        other = best[kind]
        if (router, other, None) not in compared:
            continue
        tests = [compared[router, other, task] for task in summary["tasks"]]
        ahead = [t["task"] for t in tests if t["value"] >= 0]
        behind = [f"{t['task']} ({_test(t)})" for t in tests if t["value"] < 0]
        tail = f"; behind on {', '.join(behind)}" if behind else ""
        findings.append(
            f"Against the {label}, {other} (chosen on validation rows, told the task): "
            f"{_test(compared[router, other, None])}; at least as good on {len(ahead)} of {len(tests)} tasks{tail}."
        )
    if (best["merge"], NAIVE, None) in compared:
        findings.append(
            f"{best['merge']} over the average of the factors: {_test(compared[best['merge'], NAIVE, None])}."
        )
    return findings or ["The arms that the questions are about were not among those that ran."]


def _test(test: Mapping[str, Any]) -> str:
    return f"{test['value']:+.4f} [{test['low']:+.4f}, {test['high']:+.4f}], p = {test['p_holm']:.3g} (Holm)"


def main_table(summary: Mapping[str, Any]) -> Table:
    """Return the arms with their measures and cost."""
    level = f"{100 * summary['level']:g} %"
    heads = ("arm", "task", "mean", level, "of expert", "gap", "worst task", "stored MB", "fit s", "work", "evals")
    rows = []
    for arm in summary["arms"]:
        mean, worst = arm["mean"], arm["worst"]
        rows.append(
            (
                arm["arm"],
                "told" if arm["told"] else "routed",
                _number(mean and mean["value"]),
                f"{mean['low']:.3f} - {mean['high']:.3f}" if mean else "-",
                _number(arm["relative"], 3),
                _number(arm["gap"], 2),
                f"{worst['task']} {worst['value']:.2f}" if worst["task"] else "-",
                f"{arm['bytes'] / 1e6:.2f}",
                f"{arm['fit_seconds']:.1f}",
                f"{arm['work']:.2f}",
                str(arm["evaluations"]),
            )
        )
    return Table(heads, rows)


def task_table(summary: Mapping[str, Any]) -> Table:
    """Return every arm's score on every task."""
    rows = [
        (arm["arm"], *(_number(arm["tasks"].get(task, {}).get("value")) for task in summary["tasks"]))
        for arm in summary["arms"]
    ]
    return Table(("arm", *summary["tasks"]), rows, "Primary score by task, mean over seeds", fold=True)


def router_table(summary: Mapping[str, Any]) -> Table:
    """Return how well each router routes."""
    rows = [
        (name, _number(r["accuracy"]), _number(r["macro_f1"]), _number(r["ece"]))
        for name, r in sorted(summary["routers"].items(), key=lambda item: -item[1]["accuracy"])
    ]
    return Table(("router", "accuracy", "macro F1", "calibration error"), rows, "First seed")


def _compared(summary: Mapping[str, Any]) -> list[Block]:
    blocks: list[Block] = [
        Heading("Paired comparisons"),
        Text(
            "Difference with a paired interval over items and seeds; p-values of an exchange test on the same items, "
            "corrected by Holm's method over each table; McNemar's exact test where answers are right or wrong, the "
            "largest p-value of the seeds, not corrected."
        ),
    ]
    for name, family in summary["comparisons"].items():
        for key in ("overall", "by_task"):
            if family[key]:
                caption = family["about"].capitalize() + (", task by task" if key == "by_task" else ", mean over tasks")
                blocks.append(comparison_table(family[key], caption, fold=key == "by_task" or name == "oracle"))
    return blocks


def comparison_table(tests: Sequence[Mapping[str, Any]], caption: str, *, fold: bool) -> Table:
    """Return tests as a table, those by task with McNemar's."""
    by_task = any(test["task"] for test in tests)
    heads = ["first - second", "difference", "interval", "p", "p (Holm)"]
    heads = [heads[0], "task", *heads[1:], "McNemar"] if by_task else heads
    rows = []
    for test in tests:
        cells = [
            f"{test['value']:+.4f}",
            f"{test['low']:+.4f} - {test['high']:+.4f}",
            f"{test['p']:.3g}",
            f"{test['p_holm']:.3g}",
        ]
        pair = f"{test['first']} - {test['second']}"
        mcnemar = f"{test['mcnemar']:.3g}" if "mcnemar" in test else "-"
        rows.append([pair, str(test["task"]), *cells, mcnemar] if by_task else [pair, *cells])
    return Table(heads, rows, caption, fold=fold)


def _studied(summary: Mapping[str, Any]) -> list[Block]:
    """Return the studies that were made."""
    rows = summary["studies"]
    kinds = {row["study"] for row in rows}
    blocks: list[Block] = []
    if kinds & {"coefficient", "density", "rank"}:
        picture = figures.sweeps(rows)
        blocks += [Heading("Sweeps"), Picture("sweeps", picture, "Merges along their settings, on the validation rows")]
    if "pair" in kinds:
        picture = figures.pairs(rows, summary["tasks"])
        blocks += [Heading("What two experts lose by a merge"), Picture("pairs", picture, "On the validation rows")]
    if "layers" in kinds:
        about = "Spectra of the experts' changes, overlap of their spans by block, cosine of the changes"
        blocks += [Heading("Layers"), Picture("layers", layer_figures.layers(rows), about)]
    if "unseen" in kinds:
        about = "A new head on few rows over the bare base, merges of the others, the router's mixture, the own expert"
        blocks += [Heading("A task left out"), Picture("unseen", figures.unseen(rows), about)]
        blocks.append(unseen_table(rows))
    return blocks


def unseen_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return what each body gains over the bare base on a task left out."""
    task_rows = [row for row in rows if row["study"] == "unseen"]
    bodies = [name for name in task_rows[0]["bodies"] if name != "base"]
    cells = []
    for row in task_rows:
        gains = [row["bodies"][name]["over_base"] for name in bodies]
        cells_of = [f"{o['value']:+.3f} [{o['low']:+.3f}, {o['high']:+.3f}]" for o in gains]
        cells.append([row["task"], _number(row["bodies"]["base"]["value"]), *cells_of])
    return Table(("task left out", "bare base", *bodies), cells, "Difference to the bare base with a paired interval")


def method(summary: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know to trust or repeat the comparison."""
    versions = ", ".join(f"{name} {value}" for name, value in summary["versions"].items())
    return [
        f"Settings {summary['config_hash']}, rows {summary['data']['fingerprint']}, seeds {summary['seeds']}: the rows "
        "are the same for all seeds, initial weights and order differ. A score is the mean over seeds; none is picked.",
        "Rows that are trained on, selected on, calibrated on and reported on are disjoint by normalised text.",
        "Merges, the single experts and the jointly trained arms are told the task of each row and so have the right "
        "head; routers are not told.",
        "Tuned merges have the same number of evaluations on the same validation rows. Times are those of a machine "
        "that may have done other work.",
        f"Versions: {versions}.",
    ]


def _about_arms(summary: Mapping[str, Any]) -> Table:
    families = {arm["arm"].partition("/")[0]: arm["about"] for arm in summary["arms"]}
    return Table(("arm", "what it is"), [(name, about) for name, about in sorted(families.items())], words=True)


def _words(summary: Mapping[str, Any]) -> list[Block]:
    rows = [
        (name, label, ", ".join(words)) for name, labels in summary["words"].items() for label, words in labels.items()
    ]
    if not rows:
        return []
    table = Table(
        ("classifier", "label", "features"), rows, "Features that speak most for each label", fold=True, words=True
    )
    return [Heading("What the classical classifiers go by", 3), table]


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
