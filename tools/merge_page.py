"""Write the tables of docs/merging.md: the methods from the registry, the figures from benchmarks/results/merging.json.

python tools/merge_page.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from dynamorouter.merging.registry import LAWS, merges
from dynamorouter.report.document import table_markdown

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "merging.md"
RESULT = ROOT / "benchmarks" / "results" / "merging.json"


def method_table() -> str:
    """Return one line per method: paper, default weights, options, needs."""
    rows = []
    for name in merges:
        method = merges.get(name)
        options = ", ".join(f"`{key}={value}`" for key, value in method.options.items())
        weights = "1/E" if method.weights == "mean" else "1"
        cells = [f"`{name}`", method.about, method.paper, weights, options or "-", method.needs or "-"]
        rows.append(cells)
    return table_markdown(("method", "what it does", "from", "weights", "options", "needs"), rows).rstrip()


def law_table() -> str:
    """Return one line per method: which laws it keeps, and under which options the first two hold."""
    heads = ["method", *LAWS, "options for one and identical"]
    rows = []
    for name in merges:
        method = merges.get(name)
        kept = ["yes" if law in method.laws else "no" for law in LAWS]
        plain = ", ".join(f"`{key}={value}`" for key, value in method.plain.items()) or "-"
        rows.append([f"`{name}`", *kept, plain])
    said = "\n".join(f"- **{law}**: {text};" for law, text in LAWS.items())
    return f"{said[:-1]}.\n\n{table_markdown(heads, rows).rstrip()}"


def figures(result: dict[str, Any]) -> str:
    """Return the measured times, memory and errors."""
    machine = result["machine"]
    head = f"{machine['cpu']}, {machine['threads']} thread, torch {result['versions']['torch']}"
    lines = [f"`python benchmarks/merging.py` ({head}).", ""]
    lines += ["| case | side | ms | CPU ms | ours over it |", "| --- | --- | --- | --- | --- |"]
    for row in result["rows"]:
        if not row["peers_ms"]:
            continue
        for side, took in {"ours": row["ours_ms"], **row["peers_ms"]}.items():
            share = "-" if side == "ours" else f"{row['ours_ms'] / took:.4f}"
            lines.append(f"| {row['case']} | {side} | {took:.0f} | {row['cpu_ms'][side]:.0f} | {share} |")
    lines += ["", "| peak memory, MiB | whole process | over what the imports take |", "| --- | --- | --- |"]
    memory = result["memory"]
    lines += [
        f"| {side} | {memory['peak_mb'][side]:.0f} | {memory['rise_mb'][side]:.0f} |" for side in memory["peak_mb"]
    ]
    alone = {r["case"].rpartition(", ")[2]: r["ours_ms"] for r in result["rows"] if not r["peers_ms"]}
    errors = result["reference_errors"]
    lines += ["", "| method | one block, ms | largest relative error to the dense reference |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {took:.0f} | {_error(errors.get(name))} |" for name, took in alone.items()]
    lines += ["", f"At full size the merge by SVD is within {result['svd_error']:.1e} of a dense float64 SVD."]
    return "\n".join(lines)


def _error(value: float | None) -> str:
    return "in the tests" if value is None else f"{value:.1e}"


def page(text: str) -> str:
    """Return the page with its tables made anew."""
    made = {"methods": method_table(), "laws": law_table()}
    if RESULT.is_file():
        made["figures"] = figures(json.loads(RESULT.read_text(encoding="utf-8")))
    for name, table in made.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", flags=re.DOTALL)
        text = pattern.sub(lambda _, b=begin, e=end, t=table: f"{b}\n\n{t}\n\n{e}", text)
    return text


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
