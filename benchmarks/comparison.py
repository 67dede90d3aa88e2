"""Takes over finished comparisons, and writes the figures of docs/comparison.md from what is committed.

``--run DIR`` is a folder that ``dynamorouter bench`` has finished: its figures are copied to
``benchmarks/results/RECIPE.json``. Without it the page is written anew from the results that are there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dynamorouter.bench.report import figures, report
from dynamorouter.report.document import Table, to_markdown

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
PAGE, ASSETS = DOCS / "comparison.md", DOCS / "assets"
MARK = "## Measured"
RECIPES = ("merge-bench-encoder", "merge-bench")
LEFT_OUT = ("words", "studies")
"""Too long to commit whole: features are in the run's own report, and spectra are cut below."""


def take(run: Path, command: str) -> Path:
    """Copy a comparison's figures without what is long, and the command that made them; returns the file."""
    result: dict[str, Any] = json.loads((run / "bench.json").read_text(encoding="utf-8"))
    studies = [row for row in result["studies"] if row["study"] != "layers"]
    small = {key: value for key, value in result.items() if key not in LEFT_OUT} | {"words": {}, "studies": studies}
    small["command"] = command
    path = RESULTS / f"{result['recipe'].replace('-', '_')}.json"
    path.write_text(json.dumps(_rounded(small), indent=1) + "\n", encoding="utf-8")
    return path


def _rounded(value: Any) -> Any:
    """Return plain values with numbers to six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def section(result: dict[str, Any]) -> str:
    """Return what the page says of one comparison, and write its figures."""
    name = result["recipe"].replace("-", "_")
    drawn = {"scores": figures.scores(result)}
    if result["matrix"]:
        drawn["matrix"] = figures.matrix(result)
    if any(row["study"] == "coefficient" for row in result["studies"]):
        drawn["sweeps"] = figures.sweeps(result["studies"])
    if result["ranking"]:
        drawn["ranks"] = figures.ranks(result)
    for kind, svg in drawn.items():
        (ASSETS / f"{name}_{kind}.svg").write_bytes(svg)
    about = {
        "scores": "Mean score of every arm with its interval",
        "matrix": "Every expert on every task, over the task's own expert",
        "sweeps": "Merges along their settings",
        "ranks": "Critical difference diagram",
    }
    parts = [
        f"### `{result['recipe']}`",
        f"`{result['command']}`",
        report.opening(result),
        "\n".join(f"- {answer}" for answer in report.findings_of(result)),
        *(f"![{about[kind]}](assets/{name}_{kind}.svg)" for kind in drawn),
        _table(report.main_table(result)),
        _table(report.task_table(result)),
        *(
            _table(report.comparison_table(result["comparisons"][kind]["overall"], words, fold=False))
            for kind, words in (
                ("router", "The learned router against what else there is, mean over tasks."),
                ("merges", "Merges with their defaults against the average of the factors, mean over tasks."),
            )
            if result["comparisons"][kind]["overall"]
        ),
    ]
    if any(row["study"] == "unseen" for row in result["studies"]):
        parts.append(_table(report.unseen_table(result["studies"])))
    return "\n\n".join(parts)


def _table(table: Table) -> str:
    """Return a table as Markdown."""
    return to_markdown([table]).strip()


def main() -> None:
    """Take over a run if one is given, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a finished folder of 'dynamorouter bench'")
    parser.add_argument("--command", default="", help="the command that made it, kept with the figures")
    args = parser.parse_args()
    if args.run and not args.command:
        parser.error("--run needs --command, so that a reader can make the figures again")
    if args.run:
        print(f"written to {take(args.run, args.command)}")
    results = [path for name in RECIPES if (path := RESULTS / f"{name.replace('-', '_')}.json").is_file()]
    text = PAGE.read_text(encoding="utf-8").partition(MARK)[0].rstrip()
    parts = [section(json.loads(path.read_text(encoding="utf-8"))) for path in results]
    how = "Written by `python benchmarks/comparison.py` from `benchmarks/results/merge_bench*.json`."
    PAGE.write_text("\n\n".join([text, MARK, how, *parts]) + "\n", encoding="utf-8")
    print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
