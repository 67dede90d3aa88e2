"""The command ``predict``: a label, an answer or a generated text for one text, or for each row of a file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, TextIO, get_origin

import typer
from typer.core import TyperCommand

from dynamorouter.cli.system import Json, SystemDir
from dynamorouter.errors import ConfigError


class GenerationCommand(TyperCommand):
    """A command with an option for every setting of ``Generation``; those that are given are its context's ``obj``.

    They are made when the command is used, so that ``--help`` of the others need not import the settings. A setting
    whose name the command has an option of its own for is ``--sampling-NAME`` here.
    """

    def get_params(self, ctx: typer.Context) -> list[Any]:  # type: ignore[override]
        """Return the command's own options, and those of generation."""
        return [*super().get_params(ctx), *self._generation_options()]

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Call the command, with what is given of generation apart."""
        generation = {option.name: ctx.params.pop(option.name) for option in self._generation_options()}
        ctx.obj = {
            name.removeprefix(SAMPLING): value for name, value in generation.items() if value not in (None, (), [])
        }
        return super().invoke(ctx)

    def _generation_options(self) -> list[Any]:
        return _generation_options(frozenset(str(parameter.name) for parameter in self.params))


SAMPLING = "sampling_"


@cache
def _generation_options(taken: frozenset[str]) -> list[Any]:
    """Return an option for every setting of ``Generation``, by its own name and its others that are not taken."""
    from dynamorouter.tasks.task import Generation

    def options(**values: Any) -> None:
        """Stand for a command that has these options and no others."""

    aliases = Generation.aliases()
    parameters = []
    for setting_name, setting in Generation.model_fields.items():
        name = f"{SAMPLING}{setting_name}" if setting_name in taken else setting_name
        several = get_origin(setting.annotation) is tuple
        words = (name, *(alias for alias, own_name in aliases.items() if own_name == setting_name))
        option = typer.Option(
            *(f"--{word.replace('_', '-')}" for word in words), help=str(setting.description).replace("``", "")
        )
        kind: Any = list[str] if several else setting.annotation
        annotation = Annotated[kind | None, option]
        parameters.append(Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    options.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False)
    app.command()(options)
    return list(typer.main.get_command(app).params)


def add_predict(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(name="predict", cls=GenerationCommand)(predict)


Text = Annotated[str | None, typer.Argument(help="The text, or the question.", show_default=False)]
Pair = Annotated[str | None, typer.Option("--pair", help="The second text, or the context of the question.")]
TaskName = Annotated[
    str | None, typer.Option("--task", metavar="NAME", help="Use this task's expert, or the bare 'base'; do not route.")
]
AbstainBelow = Annotated[
    float | None,
    typer.Option("--abstain-below", metavar="P", help="Answer nothing where the best expert is less probable."),
]
Fallback = Annotated[
    str | None,
    typer.Option("--fallback", metavar="base|none", help="What answers where the router abstains.", show_default=False),
]
TopK = Annotated[int | None, typer.Option("--top-k", metavar="K", help="Mix the K likeliest experts of each row.")]
RowsFile = Annotated[
    Path | None,
    typer.Option(
        "--file",
        metavar="FILE",
        help="Rows as .jsonl, .json, .csv, .tsv or .parquet (and .gz): text and pair, question and context, or a "
        "task's own columns; - for standard input.",
    ),
]
RowsFormat = Annotated[
    str | None,
    typer.Option("--format", metavar="FORMAT", help="What standard input is: jsonl (by default), json, csv, tsv."),
]
Probabilities = Annotated[bool, typer.Option("--probabilities", help="Show the probability of every label as well.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave broken rows out and count them.")]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Write the answers: .jsonl, .csv, .tsv, or .gz.")
]
Stream = Annotated[bool, typer.Option("--stream", help="Write one text, and show it as it is written.")]


def predict(
    context: typer.Context,
    system: SystemDir,
    text: Text = None,
    pair: Pair = None,
    task: TaskName = None,
    abstain_below: AbstainBelow = None,
    fallback: Fallback = None,
    top_k: TopK = None,
    file: RowsFile = None,
    form: RowsFormat = None,
    as_json: Json = False,
    probabilities: Probabilities = False,
    skip_bad: SkipBad = False,
    out: Out = None,
    stream: Stream = False,
) -> None:
    """Answer a text, or each row of a file: chosen expert, confidence, answer."""
    _check_words(text, file, pair, stream=stream, elsewhere=as_json or out is not None or probabilities)
    if stream and top_k is not None:
        raise ConfigError("--stream goes with the router's own number of experts; leave out --top-k, or --stream")
    if form is not None and (file != Path("-") or form not in FORMATS):
        raise ConfigError(f"--format is {form!r}; it goes with --file -, and is one of {', '.join(FORMATS)}")
    if fallback not in (None, "base", "none"):
        raise ConfigError(f"--fallback is {fallback!r}; allowed: base, none")
    routing: dict[str, Any] = {"abstain_below": abstain_below, "fallback": fallback, "top_k": top_k}
    asked = {name: value for name, value in routing.items() if value is not None}
    generation: dict[str, Any] = context.obj
    from dynamorouter.cli.answers import answer_file
    from dynamorouter.system.system import System

    loaded = System.load(system)
    with answer_file(out) as (where, write):
        show: Callable[..., None] = partial(_show, where, probabilities=probabilities)
        if as_json or out is not None:
            show = partial(_write, write)
        if file is not None:
            asked["generation"] = generation
            _predict_file(loaded, file, show, task=task, form=form, skip_bad=skip_bad, asked=asked)
        elif stream:
            for piece in loaded.stream(str(text), pair, task, **asked, **generation):
                print(piece, end="", file=where, flush=True)
            print(file=where)
        else:
            tasks = None if task is None else [task]
            show(loaded.predict([str(text)], [pair], tasks, generation=generation, **asked)[0].to_json())


FORMATS = ("jsonl", "json", "csv", "tsv")
"""What standard input may be."""


def _check_words(text: str | None, file: Path | None, pair: str | None, *, stream: bool, elsewhere: bool) -> None:
    """Refuse words of the command line that do not go together."""
    if (text is None) == (file is None):
        raise ConfigError("give either a text or --file FILE")
    if file is not None and pair is not None:
        raise ConfigError("--pair goes with a text; rows of a file hold their own 'pair'")
    if stream and (file is not None or elsewhere):
        raise ConfigError(
            "--stream shows one text as it is written; leave out --file, --json, --out and --probabilities"
        )


def _predict_file(
    system: Any,
    file: Path,
    show: Callable[..., None],
    *,
    task: str | None,
    form: str | None,
    skip_bad: bool,
    asked: dict[str, Any],
) -> None:
    """Stream the answers to a file's rows, and end with the number of rows left out."""
    from dynamorouter.system.predict_file import predict_lines, spooled
    from dynamorouter.utils.jsonl import SkipCount

    skipped = SkipCount()
    named = [expert.task for expert in system.experts if task in (None, expert.name, expert.task.name)]
    with ExitStack() as stack:
        if file == Path("-"):
            is_whole = form not in (None, "jsonl")
            file = stack.enter_context(spooled(sys.stdin.buffer, f".{form}")) if is_whole else Path("/dev/stdin")
        counted = skipped if skip_bad else None
        for row, prediction in predict_lines(system, file, task=task, tasks=named, skip_bad=counted, asked=asked):
            show(prediction.to_json(), row)
    if skip_bad:
        for message in skipped.messages:
            print(f"skipped: {message}", file=sys.stderr)
        print(f"{skipped.count} bad rows skipped", file=sys.stderr)


def _write(write: Callable[[dict[str, Any]], None], values: dict[str, Any], row: Any = None) -> None:
    """Write one answer for programs, after where its row stands in its file."""
    position = {} if row is None else {"line": row.number, **({} if row.id is None else {"id": row.id})}
    write({**position, **values})


def _show(where: TextIO, values: dict[str, Any], row: Any = None, *, probabilities: bool) -> None:
    """Print one answer for people, and the beginning of its row where there are several."""
    from dynamorouter.cli.tables import prediction_line

    chances = values.get("label_probabilities") if probabilities else None
    added = ", ".join(f"{label} {chance:.3f}" for label, chance in (chances or {}).items())
    shown = f"{prediction_line(values)}{added and f'  ({added})'}"
    print(shown if row is None else f"{shown:<40} | {_start(row.text, row.pair)}", file=where, flush=True)


def _start(text: str, pair: str | None) -> str:
    """Return the beginning of a row on one line, control characters left out."""
    whole = " ".join(text.split()) + (f" / {' '.join(pair.split())}" if pair else "")
    clean = "".join(c for c in whole if c.isprintable())
    return clean if len(clean) <= 70 else f"{clean[:67]}..."
