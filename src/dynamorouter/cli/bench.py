"""The command ``bench``: the comparison of a recipe's arms, and its reports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dynamorouter.config.schema import Config

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CONFIG [KEY=VALUE]...",
        help="A recipe such as merge-bench-encoder, or a YAML or JSON file, and settings to change.",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the comparison.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what DIR holds.")]
FILES = (".yaml", ".yml", ".json")


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(name="bench")(bench)


def bench(arguments: Words = None, *, out: Out, resume: Resume = False) -> None:
    """Compare experts, routers, merges, joint training and baselines on the same items; end with two reports."""
    from dynamorouter.config.compose import compose
    from dynamorouter.runs.run import saved_config

    words = list(arguments or [])
    named = words[:1] if words and "=" not in words[0] else []
    saved = out / "config.yaml"
    goes_on = resume and not named and saved.is_file()
    settings = saved_config(out) if goes_on and not words else None
    if settings is None:
        file = Path(named[0]) if named and named[0].endswith(FILES) else saved if goes_on else None
        recipe = named[0] if named and file is None else None
        settings = compose(
            recipe, [*words[len(named) :], "bench.enabled=true"], config_file=file, more_checks=arm_checks
        )
    run_bench(settings, out, resume=resume)


def run_bench(settings: Config, out: Path, *, resume: bool) -> None:
    """Open the folder, do what is left of the comparison, write the reports, and print the main table."""
    from dynamorouter.bench.report.report import write_reports
    from dynamorouter.bench.results import FREE
    from dynamorouter.bench.run import bench as compare
    from dynamorouter.bench.run import check
    from dynamorouter.report.style import plotting
    from dynamorouter.runs.bases import check_bases
    from dynamorouter.runs.run import check_places, is_begun, keep_settings, open_run

    check(settings)
    plotting()
    if not is_begun(out):
        check_places(settings)
        check_bases(settings)
    open_run(settings, out, resume=resume, free=FREE)
    keep_settings(settings, out)
    compare(settings, out)
    summary = write_reports(settings, out)
    print_main(summary)
    print(f"report: {out / 'report.html'} and {out / 'report.md'}")


def print_main(summary: dict[str, Any]) -> None:
    """Print the arms' mean scores, best first."""
    from dynamorouter.cli.tables import print_rows

    rows = []
    for arm in summary["arms"]:
        mean = arm["mean"] or {}
        span = f"{mean['low']:.4f} - {mean['high']:.4f}" if mean else "-"
        task = "told" if arm["told"] else "routed"
        rows.append([arm["arm"], task, mean.get("value"), span, arm["relative"], arm["worst"]["value"]])
    print_rows(["arm", "task", "mean", f"{100 * summary['level']:g} %", "of the experts", "worst task"], rows)


def arm_checks(tree: dict[str, Any]) -> list[str]:
    """Return which arms of a composed tree do not exist; torch is imported only where a comparison is asked for."""
    settings, tasks = tree.get("bench"), tree.get("task")
    if not isinstance(settings, dict) or settings.get("enabled") is not True or not isinstance(tasks, dict):
        return []
    from dynamorouter.bench.arms.base import match_arms

    mistakes = []
    for key in ("arms", "diagram"):
        names = settings.get(key, [])
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
            mistakes += [f"bench.{key}: {mistake}" for mistake in match_arms(names, list(tasks))[1]]
    return mistakes
