"""Writes docs/measured.md from the committed results, so that no figure there is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynamorouter.report.document import table_markdown

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "measured.md"


def load(name: str) -> dict[str, Any] | None:
    """Return a committed result, or ``None`` where it was not made yet."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def timings(name: str, title: str, words: str, *, against: str = "over_base", options: str = "", file: str = "") -> str:
    """Write one timed benchmark; its result is in ``file`` where options make another one."""
    result = load(file or name)
    if result is None:
        return ""
    rows = [
        (
            row["case"],
            row["ours_ms"],
            row["base_ms"],
            ", ".join(f"{peer} {ms:.1f}" for peer, ms in row["peers_ms"].items()) or "-",
            row["over_base"],
            row["over_best_peer"],
            "-" if row["limit"] is None else f"{row['limit']:.3f} {'met' if row.get('within') else 'missed'}",
        )
        for row in result["rows"]
    ]
    heads = ("case", "ours ms", "base ms", "peers ms", "over base", "over best peer", f"limit on {against}")
    machine = result["machine"]
    where = f"{machine['gpu'] or machine['cpu']}, {machine['threads']} threads, torch {result['versions']['torch']}"
    return f"## {title}\n\n`python benchmarks/{name}.py{options}` ({where}). {words}\n\n{table_markdown(heads, rows)}\n"


def scores(path: str, title: str, words: str) -> str:
    """Write one report of a system."""
    report = load(path)
    if report is None:
        return ""
    rows = [
        (
            name,
            row["metric"],
            row["n"],
            row["oracle"],
            row["routed"],
            " - ".join(f"{value:.3f}" for value in row["ci95"]["routed"]),
        )
        for name, row in report["tasks"].items()
    ]
    router = report["router"]
    line = (
        f"Router accuracy {router['accuracy']:.4f} (majority {router['majority']:.4f}), "
        f"macro F1 {router['macro_f1']:.4f}, ECE {router['ece']:.4f}; "
        f"routed over oracle, mean over tasks, {report['normalised']:.4f}."
    )
    heads = ("task", "metric", "n", "oracle", "routed", "95 % interval")
    return f"## {title}\n\n{words}\n\n{table_markdown(heads, rows)}\n{line}\n\n"


def quality() -> str:
    """Write routers, systems and ablations."""
    result = load("quality")
    if result is None:
        return ""
    parts = []
    if "routers" in result:
        rows = [(row["router"], row["pairs"], row["joined"]) for row in result["routers"]]
        parts.append(
            "## Routers beside their baselines\n\n`python benchmarks/quality.py --run runs/seven` on the "
            "test rows of `seven`: pairs given as pairs, and each pair as one run of text.\n\n"
            + table_markdown(("router", "accuracy, pairs", "accuracy, joined"), rows)
        )
    if "systems" in result:
        by_task: Mapping[str, Mapping[str, float]] = result["systems"]["by_task"]
        names = list(next(iter(by_task.values())))
        rows = [(arm, result["systems"]["mean"][arm], *(own[name] for name in names)) for arm, own in by_task.items()]
        parts.append(
            "## Dynamic, static, off\n\nHeadline scores on the same rows. Static sends every row to one expert; off "
            "mixes all experts equally under each row's own head.\n\n" + table_markdown(("arm", "mean", *names), rows)
        )
    if "ablations" in result:
        names = list(result["ablations"][0]["scores"])
        rows = [(row["arm"], row["mean"], *(row["scores"][name] for name in names)) for row in result["ablations"]]
        size = result["ablation_rows"]
        parts.append(
            f"## Ablations of training\n\n{size['train']} train rows a task, three epochs, {size['held']} "
            "held-out rows a task, one seed: differences of a few points are within noise.\n\n"
            + table_markdown(("arm", "mean", *names), rows)
        )
    return "\n".join(parts) + "\n"


def same_scores() -> str:
    """Write the scores of the same experts trained packed and by PEFT."""
    result = load("training_scores")
    if result is None:
        return ""
    rows = [
        (
            name,
            row["trunk_depth"],
            row["train_rows"],
            row["seed"],
            row["ours"][name],
            row["peft"][name],
            row["peft_ungrouped"][name],
        )
        for row in result["scores"]
        for name in row["ours"]
    ]
    words = (
        "`python benchmarks/training.py --rows 0 --tasks conll2003 --score-rows 300 --score-depth 0 "
        "--score-seeds 0 1 2`: the same rows, steps and first weights, few of them. "
        "Where the Trainer puts rows of like length into one step, "
        "short rows, which are dense in entities, weigh more in its mean over words, and tags are learned sooner; with "
        "rows drawn at random, as ours are, it scores as we do."
    )
    heads = ("task", "trunk", "rows", "seed", "packed", "PEFT + Trainer", "the same, rows at random")
    return f"## The same experts by PEFT\n\n{words}\n\n{table_markdown(heads, rows)}\n"


def complexity() -> str:
    """Write one run of the recipe ``complexity``."""
    report = load("complexity_run")
    if report is None:
        return ""
    found = report["complexity"]
    arms = [(name, arm["loss"], *arm["loss_ci95"], arm["perplexity"]) for name, arm in found["arms"].items()]
    gaps = [(name, gap["loss"], *gap["ci95"]) for name, gap in found["differences"].items()]
    routing, ms = found["routing"], found["latency_ms"]
    line = (
        f"Routing accuracy {routing['accuracy']:.3f} (majority {routing['majority']:.3f}, a tree on the number of "
        f"words {routing['length_only']:.3f}); squared error of the complexity {routing['complexity_mse']:.4f} (of the "
        f"mean {routing['complexity_mse_of_mean']:.4f}, of the length {routing['complexity_mse_of_length']:.4f}); "
        f"the router takes {ms['batch']:.2f} ms a prompt in batches, {ms['single']:.2f} ms one at a time. "
        "The one LoRA takes as many steps as the experts of all tiers together."
    )
    return (
        "## Instructions by complexity\n\n`dynamorouter run complexity data=local data.root=DIR base=mini "
        "experts.train_rows=1500 experts.epochs=3` on Alpaca, held-out rows.\n\n"
        + table_markdown(("arm", "loss", "from", "to", "perplexity"), arms)
        + "\n"
        + table_markdown(("difference of the loss", "value", "from", "to"), gaps)
        + f"\n{line}\n\n"
    )


def main() -> None:
    """Write the page."""
    parts = [
        "# Measured\n\nEvery figure here is copied by `python benchmarks/_page.py` from "
        "`benchmarks/results/*.json`, which the\nnamed commands write. Times are taken in turn in one process; "
        "ratios are medians over rounds.\n\n",
        scores(
            "seven",
            "Real tasks, 2,000 train rows each",
            "`dynamorouter run seven data=local data.root=DIR experts.train_rows=2000 router.train_rows=1000`, "
            "scored on validation rows that no phase has seen.",
        ),
        scores(
            "quickstart_transfer",
            "Built-in data alone, scored on real rows",
            "`make demo`, then `dynamorouter score runs/quickstart/system --data DIR --split validation --limit 500`.",
        ),
        quality(),
        complexity(),
        timings(
            "mixed_batch",
            "Mixed batches",
            "The bank beside the bare base and PEFT's two ways, largest difference of outputs checked in the same run.",
        ),
        timings(
            "generation",
            "Generation",
            "Milliseconds for one token of each of 16 rows with 8 experts, prompts included, or for the prompts alone. "
            "`base` is the same loop without experts.",
        ),
        timings("routing", "Routing", "`base` is the same `predict` with each row's expert given."),
        timings(
            "training",
            "Training",
            "Packed training beside PEFT with the Trainer, one task after another; a limit of 0.833 "
            "is 1.2 times faster. With the default 16 rows a task the Trainer's fixed cost per task weighs in and "
            "flatters us.",
            against="over_best_peer",
        ),
        timings(
            "training",
            "Training on more rows",
            "The same with 32 rows a task, in two rounds: the fairer figure, less sure.",
            against="over_best_peer",
            options=" --rows 32 --depth 3 4 --rounds 2",
            file="training_32",
        ),
        same_scores(),
        timings(
            "training_lm",
            "Training experts that write",
            "Three experts trained packed beside PEFT with the Trainer, one task after another, on a random GPT-2 of "
            "six layers; a limit of 0.667 is 1.5 times faster.",
            against="over_best_peer",
        ),
        timings(
            "startup",
            "Startup",
            "Processor time of whole processes, to the first answer to one text; `base` is transformers alone loading "
            "the same base and reading it, and for the imports an empty Python. The aim is at most 2,000 ms more, and "
            "imports of `--help` under 300 ms.",
        ),
        timings("memory", "Memory", "Shares of the base, not times: what one further expert costs."),
    ]
    PAGE.write_text("".join(parts).rstrip() + "\n", encoding="utf-8")
    print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
