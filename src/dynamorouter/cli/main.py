"""The command line: parse, call one function, print. Nothing here imports torch before a command needs it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from dynamorouter import __version__
from dynamorouter.cli.bench import arm_checks, register, run_bench
from dynamorouter.cli.explore import explore, explore_complexity, print_complexity
from dynamorouter.cli.merge import merge
from dynamorouter.cli.names import list_
from dynamorouter.cli.predict import add_predict
from dynamorouter.cli.system import LOSS, MaxLoss, SystemDir, add_commands, fit_saved_router
from dynamorouter.errors import ConfigError, DynamoRouterError

if TYPE_CHECKING:
    from dynamorouter.config.schema import Config


class _Commands(TyperGroup):
    """Turns errors that a user can act on into one message and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises:
            Exit: with 2 after an error, 130 after Ctrl-C, 141 when the reader of the output has gone.
        """
        try:
            return super().invoke(ctx)
        except DynamoRouterError as error:
            _complain(str(error))
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            _complain("interrupted; what was done is kept: give the same command again with --resume to go on")
            raise typer.Exit(130) from error
        except BrokenPipeError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from error
        except OSError as error:
            where = f" {str(error.filename)!r}" if error.filename is not None else ""
            remedy = (
                "free space, check the path and its permissions, or name another place; what was done before is kept"
            )
            _complain(f"cannot read or write{where}: {error.strerror or error}; {remedy}")
            raise typer.Exit(2) from error


def _complain(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)


app = typer.Typer(
    cls=_Commands,
    help="One frozen base, an expert per task, the right one chosen in a single pass.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
fit = typer.Typer(help="Train one phase alone, in the folder of a run.", no_args_is_help=True)
app.add_typer(fit, name="fit")
register(app)
explore.command("complexity")(explore_complexity)
app.add_typer(explore, name="explore")
app.add_typer(merge, name="merge")

Recipe = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE [KEY=VALUE]...",
        help="A recipe (see 'list recipes') and settings to change.",
        show_default=False,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings as JSON or YAML; may name the recipe.", show_default=False),
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the run.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what DIR holds.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SkipBadRows = Annotated[
    bool, typer.Option("--skip-bad", help="Leave broken rows out and count them (data.filters.skip_bad=true).")
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave broken rows out and count them.")]
Data = Annotated[
    Path,
    typer.Option("--data", metavar="DIR", help="Folder with TASK/SPLIT.jsonl, .csv, .tsv, .. in the tasks' columns."),
]


def _compose(arguments: list[str] | None, config: Path | None) -> Config:
    """Compose the settings that a command line asks for."""
    from dynamorouter.config.compose import compose

    words = list(arguments or [])
    recipe = words.pop(0) if words and "=" not in words[0] and words[0][:1] not in "~+" else None
    return compose(recipe, words, config_file=config, more_checks=arm_checks)


def _open(
    arguments: list[str] | None, config: Path | None, out: Path, *, resume: bool, fresh: bool, skip_bad: bool = False
) -> Config:
    """Compose the settings and open the run's folder; its own settings serve when none are given."""
    from dynamorouter.runs.bases import check_bases
    from dynamorouter.runs.run import check_places, is_begun, open_run, saved_config

    settings = saved_config(out) if not arguments and config is None and (resume or not fresh) else None
    settings = settings or _compose(arguments, config)
    if skip_bad:
        filters = settings.data.filters.model_copy(update={"skip_bad": True})
        settings = settings.model_copy(update={"data": settings.data.model_copy(update={"filters": filters})})
    if not is_begun(out):
        from dynamorouter.system.router import check_router

        check_places(settings)
        check_bases(settings)
        check_router(settings.router.model_dump())
    open_run(settings, out, resume=resume, fresh=fresh)
    return settings


def _version(is_asked: bool) -> None:
    if is_asked:
        print(f"dynamorouter {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    arguments: Recipe = None,
    *,
    out: Out,
    config: ConfigFile = None,
    resume: Resume = False,
    skip_bad: SkipBadRows = False,
) -> None:
    """Prepare, train experts and router, train both together if asked, score; end with a table."""
    settings = _open(arguments, config, out, resume=resume, fresh=True, skip_bad=skip_bad)
    if settings.bench.enabled:
        run_bench(settings, out, resume=True)
        return
    from dynamorouter.cli.tables import print_report
    from dynamorouter.runs import phases as pipeline
    from dynamorouter.utils.files import read_json

    pipeline.run(settings, out)
    report = read_json(out / "report.json")
    print_report(report)
    print_complexity(report)
    print(f"system: {out / 'system'}")


@app.command()
def prepare(
    arguments: Recipe = None,
    *,
    out: Out,
    config: ConfigFile = None,
    resume: Resume = False,
    skip_bad: SkipBadRows = False,
) -> None:
    """Read, filter, split and write the rows of all tasks to DIR/data."""
    settings = _open(arguments, config, out, resume=resume, fresh=True, skip_bad=skip_bad)
    from dynamorouter.runs import phases as pipeline

    pipeline.prepare(settings, out, reread=True)


@fit.command("experts")
def fit_experts(arguments: Recipe = None, *, out: Out, config: ConfigFile = None, resume: Resume = False) -> None:
    """Train the experts on prepared rows."""
    settings = _open(arguments, config, out, resume=resume, fresh=False)
    from dynamorouter.runs import phases as pipeline

    pipeline.fit_experts(settings, out)


@fit.command("router")
def fit_router(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE|SYSTEM [KEY=VALUE]...",
            help="A recipe and settings to change, for the run in --out; or a saved system and router.KEY=VALUE.",
            show_default=False,
        ),
    ] = None,
    *,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder of the run.")] = None,
    config: ConfigFile = None,
    resume: Resume = False,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Of a saved system: further rows, TASK/train.jsonl.")
    ] = None,
    max_loss: MaxLoss = LOSS,
) -> None:
    """Fit the router on a run's prepared rows; or that of a saved system, on what is kept of its experts' rows."""
    words = list(arguments or [])
    if words and (Path(words[0]) / "system.json").is_file() and out is None:
        fit_saved_router(Path(words[0]), words[1:], data=data, max_loss=max_loss)
        return
    if out is None:
        raise ConfigError(
            f"{words[0] if words else 'nothing'!r} is no saved system; give the folder of one (it has a system.json), "
            "or the folder of a run with --out DIR"
        )
    if data is not None:
        raise ConfigError(
            "--data is for a saved system; the rows of a run are those that 'prepare' wrote: leave it out"
        )
    settings = _open(arguments, config, out, resume=resume, fresh=False)
    from dynamorouter.runs import phases as pipeline

    pipeline.fit_router(settings, out)


@fit.command("joint")
def fit_joint(arguments: Recipe = None, *, out: Out, config: ConfigFile = None, resume: Resume = False) -> None:
    """Train router and experts together."""
    settings = _open(arguments, config, out, resume=resume, fresh=False)
    from dynamorouter.runs import phases as pipeline

    pipeline.fit_joint(settings, out)


app.command("list")(list_)


@app.command()
def show(arguments: Recipe = None, *, config: ConfigFile = None, as_json: Json = False) -> None:
    """Print the complete settings of a recipe."""
    settings = _compose(arguments, config)
    print(json.dumps(settings.to_json(), indent=2, ensure_ascii=False) if as_json else settings.to_yaml().rstrip())


add_predict(app)


@app.command()
def score(
    system: SystemDir,
    data: Data,
    out: Annotated[Path, typer.Option("--out", metavar="JSON", help="Where the scores are written.")],
    split: Annotated[str, typer.Option("--split", help="Which file of each task's folder.")] = "validation",
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Most rows per task.")] = None,
    skip_bad: SkipBad = False,
    keep_seen: Annotated[
        bool, typer.Option("--keep-seen", help="Score rows that the system has learned from, too.")
    ] = False,
) -> None:
    """Score the system's tasks that DIR holds: with the right expert given, and routed."""
    from dynamorouter.cli.tables import print_report
    from dynamorouter.evaluation.score import score as score_folder
    from dynamorouter.utils.files import read_json

    scores = score_folder(system, data, split, out, limit=limit, skip_bad=skip_bad, keep_seen=keep_seen)
    print_report(read_json(out))
    if skip_bad:
        print(f"{scores['skipped']} bad rows skipped", file=sys.stderr)


add_commands(app)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is installed, which device and precision are used, what is missing and how to get it."""
    from dynamorouter.cli.doctor import report

    findings = report()
    if as_json:
        print(json.dumps([finding.to_json() for finding in findings], indent=2, ensure_ascii=False))
    else:
        from dynamorouter.cli.tables import print_findings

        print_findings(findings)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
