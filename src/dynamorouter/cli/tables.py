"""Tables for people: reports, lists, findings. The numbers themselves are in the JSON files."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dynamorouter.cli.doctor import Finding
from dynamorouter.report.document import cell_text


def console(*, stderr: bool = False) -> Console:
    """Return a console that never wraps a number: off a terminal it is 120 columns wide."""
    terminal = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if terminal.is_terminal:
        return terminal
    return Console(stderr=stderr, highlight=False, width=max(120, shutil.get_terminal_size().columns))


def print_report(report: Mapping[str, Any]) -> None:
    """Print ``report.json`` or ``scores.json``: one line per task, then the router."""
    rows = []
    for name, row in report.get("tasks", {}).items():
        interval = row.get("ci95", {}).get("routed")
        span = " - ".join(map(cell_text, interval)) if interval and None not in interval else ""
        rows.append([name, row["metric"], row["n"], row["oracle"], row["routed"], span])
    print_rows(("task", "metric", "n", "oracle", "routed", "routed, 95 %"), rows)
    out = console()
    router = report.get("router") or {}
    parts = [f"{key} {cell_text(router[key])}" for key in ("accuracy", "macro_f1", "ece", "majority") if key in router]
    if parts:
        out.print("router: " + ", ".join(parts), soft_wrap=True)
    seen = report.get("seen") or {}
    for name, rows in seen.get("left_out", {}).items():
        out.print(f"{name}: {rows} rows left out, since the system has learned from them", soft_wrap=True)
    if seen.get("unknown"):
        names = ", ".join(seen["unknown"])
        out.print(f"what {names} learned from is not known, so rows may be among it", soft_wrap=True)
    if report.get("normalised") is not None:
        out.print(f"routed / oracle, mean over tasks: {cell_text(report['normalised'])}", soft_wrap=True)


def print_names(names: Mapping[str, str]) -> None:
    """Print names with a line on each."""
    table = Table.grid(padding=(0, 2))
    for name, line in names.items():
        table.add_row(Text(name, style="bold"), Text(line))
    console().print(table)


def print_rows(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print plain rows under heads; columns of numbers are aligned to the right."""
    table = Table(*map(escape, heads))
    for row in rows:
        table.add_row(
            *(Text(cell_text(cell), justify="right" if isinstance(cell, int | float) else "left") for cell in row)
        )
    console().print(table)


def print_findings(findings: Iterable[Finding]) -> None:
    """Print what `doctor` found, with remedies."""
    styles = {"ok": "green", "missing": "yellow", "problem": "bold red"}
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        table.add_row(Text(finding.status, style=styles[finding.status]), Text(finding.subject), Text(finding.detail))
        if finding.remedy:
            table.add_row("", "", Text(f"-> {finding.remedy}", style="bold"))
    console().print(table)


def prediction_line(values: Mapping[str, Any]) -> str:
    """Return one line for one prediction as JSON values: chosen expert, confidence, answer."""
    entities, answer = values.get("entities"), values.get("answer")
    if entities is not None:
        shown = ", ".join(f"{entity['text']} ({entity['type']})" for entity in entities) or "(no entities)"
    else:
        shown = "(abstained)" if answer is None else str(answer) or "(no answer)"
    expert = values.get("expert") or values.get("task") or "-"
    confidence = "-" if values["confidence"] is None else f"{values['confidence']:.3f}"
    return f"{expert:<12} {confidence:>6}  {' '.join(shown.split())}"
