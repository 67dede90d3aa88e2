"""Do tiers of complexity beat one LoRA? The recipe ``complexity`` on a sample of Alpaca, tiers made in three ways.

``--data`` is a folder with ``alpaca/{train,validation}.jsonl``; without it the built-in instructions are used. Every
variant goes through the whole recipe on the same sample, and reports loss and perplexity of the five arms with paired
intervals, routing beside its baselines, and latency. A variant that leaves a tier without rows is reported as refused.
First the learning rate of the experts is chosen among three by the loss on held-out rows that are not reported on.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import arguments, machine, versions
from dynamorouter.cli.explore import print_complexity
from dynamorouter.config.compose import compose
from dynamorouter.errors import DataError
from dynamorouter.runs import phases as pipeline
from dynamorouter.runs.run import open_run
from dynamorouter.system.system import System
from dynamorouter.utils.files import read_json

RATES = (5e-5, 1e-3, 3e-3)
"""Learning rates of the experts: the one claimed for such a system, and two higher ones."""
VARIANTS = ("quantile", "kmeans", "thresholds")
SEED = 0
PAGE = Path(__file__).parents[1] / "docs" / "complexity.md"
BEGIN, END = "<!-- figures: python benchmarks/complexity.py --page -->", "<!-- end of figures -->"


def main() -> None:
    """Run all variants and write what they say."""
    parser = arguments("complexity", __doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with alpaca/train.jsonl; the built-in instructions if not")
    parser.add_argument("--rows", type=int, default=4500, help="train rows of the sample")
    parser.add_argument("--expert-rows", type=int, default=400, help="train rows of each expert")
    parser.add_argument("--epochs", type=int, default=3, help="passes of the experts and of the one LoRA")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, help="ways to make tiers")
    parser.add_argument("--note", default="", help="kept in the result, such as what the base was trained on")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="further settings of the recipe")
    parser.add_argument("--page", action="store_true", help="write no result, but the committed one into the docs")
    given = parser.parse_args()
    if given.page:
        write_page(given.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        run_all(given, Path(folder))


def run_all(given: argparse.Namespace, folder: Path) -> None:
    """Choose a learning rate, run every variant, and write after each."""
    shared = common(given, folder)
    result: dict[str, Any] = {
        "data": "alpaca, a sample" if given.data else "built-in instructions",
        "note": given.note,
        "quick": given.quick,
        "settings": [word for word in shared if not word.startswith(("data.root", "base.path", "complexity.pipeline"))],
        "learning_rates": {} if given.quick else learning_rates(shared, folder),
        "variants": {},
    }
    rate = max(result["learning_rates"], key=lambda key: result["learning_rates"][key]["score"], default="0.001")
    result["chosen_learning_rate"] = float(rate)
    for variant in given.variants[:1] if given.quick else given.variants:
        words = [*shared, f"complexity.tiers={variant}", f"experts.learning_rate={rate}"]
        result["variants"][variant] = one(words, folder / variant)
        result |= {"versions": versions(), "machine": machine()}
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written to {given.out}")


def common(given: argparse.Namespace, folder: Path) -> list[str]:
    """Return the settings that all variants share, with a sample of the data where there is some."""
    rows, epochs = (60, 1) if given.quick else (given.expert_rows, given.epochs)
    words = [
        f"experts.train_rows={rows}",
        f"experts.epochs={epochs}",
        f"experts.accumulation={1 if given.quick else 4}",
        f"router.train_rows={250 if given.quick else 1000}",
        f"joint.train_rows={15 if given.quick else 100}",
        f"evaluation.report_rows={60 if given.quick else 200}",
        f"evaluation.select_rows={20 if given.quick else 60}",
        f"evaluation.calibrate_rows={20 if given.quick else 60}",
    ]
    if given.data:
        sample(given.data / "alpaca", folder / "data" / "alpaca", 1000 if given.quick else given.rows)
        words += ["data=local", f"data.root={folder / 'data'}"]
    return [*words, *given.settings]


def sample(source: Path, target: Path, rows: int) -> None:
    """Copy a random sample of the train rows, and all held-out rows."""
    target.mkdir(parents=True)
    for split in ("train", "validation"):
        lines = (source / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        if split == "train" and rows < len(lines):
            lines = random.Random(SEED).sample(lines, rows)
        (target / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def learning_rates(shared: list[str], folder: Path) -> dict[str, dict[str, float]]:
    """Return, by learning rate, the experts' mean score on rows for selection: less loss is a higher score."""
    found = {}
    for rate in RATES:
        out = folder / f"rate-{rate:g}"
        config = compose("complexity", [*shared, f"experts.learning_rate={rate}", "experts.epochs=2"])
        open_run(config, out, resume=False)
        pipeline.prepare(config, out)
        system = System.load(pipeline.fit_experts(config, out))
        scores = [float(expert.card["training"]["select_score"]) for expert in system.experts]
        found[f"{rate:g}"] = {"score": sum(scores) / len(scores)}
        print(f"learning rate {rate:g}: mean loss on rows for selection {-sum(scores) / len(scores):.4f}", flush=True)
    return found


def one(words: list[str], out: Path) -> dict[str, Any]:
    """Run the recipe once, and return its tiers and the complexity part of its report."""
    began = time.perf_counter()
    config = compose("complexity", words)
    open_run(config, out, resume=False)
    try:
        pipeline.run(config, out)
    except DataError as error:
        print(error)
        return {"refused": str(error)}
    report = read_json(out / "report.json")
    print_complexity(report)
    tiers = read_json(out / "tiers" / "manifest.json")
    return {
        "tiers": {key: tiers[key] for key in ("pipeline", "rule", "rows")},
        "complexity": report["complexity"],
        "router": {key: report["router"][key] for key in ("accuracy", "macro_f1", "ece", "majority")},
        "seconds": time.perf_counter() - began,
    }


def write_page(result: Path) -> None:
    """Put the figures of a result into docs/complexity.md, between the two marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    figures = "\n".join(shown(json.loads(result.read_text(encoding="utf-8"))))
    PAGE.write_text(f"{before}{BEGIN}\n\n{figures}\n{END}{after}", encoding="utf-8")


def shown(result: dict[str, Any]) -> list[str]:
    """Return a result as lines of Markdown."""
    size = " with `--quick`, which is far too little to judge the arms by" if result["quick"] else ""
    lines = [f"Data: {result['data']}{size}. {result['note']}.".replace(". .", "."), ""]
    if result["learning_rates"]:
        tried = ", ".join(f"{rate}: {-row['score']:.4f}" for rate, row in result["learning_rates"].items())
        lines += [f"Loss on rows for selection by the experts' learning rate: {tried}.", ""]
    for name, variant in result["variants"].items():
        lines += [f"### Tiers by {name}", ""]
        if "refused" in variant:
            lines += [f"Refused: {variant['refused']}", ""]
            continue
        found = variant["complexity"]
        lines += [f"Train rows of the sample by tier: {variant['tiers']['rows']['train']}.".replace("'", ""), ""]
        lines += ["| arm | loss | 95 % | perplexity |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {arm} | {row['loss']:.4f} | {_span(row['loss_ci95'])} | {row['perplexity']:.2f} |"
            for arm, row in found["arms"].items()
        ]
        lines += ["", "| difference of the loss | value | 95 % |", "| --- | --- | --- |"]
        lines += [
            f"| {pair} | {row['loss']:+.4f} | {_span(row['ci95'])} |" for pair, row in found["differences"].items()
        ]
        lines += ["", *_routing(found["routing"], found["latency_ms"]), ""]
    return lines


def _routing(routing: dict[str, Any], latency: dict[str, float]) -> list[str]:
    return [
        "| routing | value |",
        "| --- | --- |",
        f"| accuracy | {routing['accuracy']:.4f} ({_span(routing['accuracy_ci95'])}) |",
        f"| majority class | {routing['majority']:.4f} |",
        f"| length alone | {routing['length_only']:.4f} |",
        f"| squared error of the complexity | {routing['complexity_mse']:.4f} |",
        f"| the same, of the mean | {routing['complexity_mse_of_mean']:.4f} |",
        f"| the same, of the length alone | {routing['complexity_mse_of_length']:.4f} |",
        f"| Gini of the usage | {routing['gini']:.4f} |",
        f"| ms a prompt in batches, router alone (with the base) | {latency['batch']:.3f} "
        f"({latency['batch_with_base']:.3f}) |",
        f"| ms a prompt one at a time, router alone (with the base) | {latency['single']:.3f} "
        f"({latency['single_with_base']:.3f}) |",
    ]


def _span(interval: list[float]) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}"


if __name__ == "__main__":
    main()
