"""The command ``predict``: a label, an answer or a generated text for one text, or for each row of a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, TextIO, get_origin

import typer
from typer.core import TyperCommand

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


def predict(
    context: typer.Context,
    system: Annotated[Path, typer.Argument(metavar="SYSTEM", help="A saved system, such as runs/quickstart/system.")],
    text: Annotated[str | None, typer.Argument(help="The text, or the question.", show_default=False)] = None,
    pair: Annotated[str | None, typer.Option("--pair", help="The second text, or the context of the question.")] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="NAME", help="Use this task's expert, or the bare 'base'; do not route."),
    ] = None,
    abstain_below: Annotated[
        float | None,
        typer.Option("--abstain-below", metavar="P", help="Answer nothing where the best expert is less probable."),
    ] = None,
    fallback: Annotated[
        str | None,
        typer.Option(
            "--fallback", metavar="base|none", help="What answers where the router abstains.", show_default=False
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", metavar="K", help="Mix the K likeliest experts of each row.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="JSONL", help="Rows with text and pair, or question and context.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Show the probability of every label as well.")
    ] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave broken rows out and count them.")] = False,
    out: Annotated[Path | None, typer.Option("--out", metavar="JSONL", help="Write the answers to this file.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Write one text, and show it as it is written.")] = False,
) -> None:
    """Answer a text, or each row of a file: chosen expert, confidence, answer."""
    _check_words(text, file, pair, stream=stream, elsewhere=as_json or out is not None or probabilities)
    if stream and top_k is not None:
        raise ConfigError("--stream goes with the router's own number of experts; leave out --top-k, or --stream")
    from dynamorouter.system.system import System
    from dynamorouter.utils.files import writing

    if fallback not in (None, "base", "none"):
        raise ConfigError(f"--fallback is {fallback!r}; allowed: base, none")
    routing = {"abstain_below": abstain_below, "fallback": fallback, "top_k": top_k}
    asked = {**{name: value for name, value in routing.items() if value is not None}, "generation": context.obj}
    loaded = System.load(system)
    with ExitStack() as stack:
        where = sys.stdout
        if out is not None:
            where = stack.enter_context(stack.enter_context(writing(out)).open("w", encoding="utf-8"))
        if file is not None:
            as_json = as_json or out is not None
            show = partial(_shown, as_json=as_json, probabilities=probabilities)
            _predict_file(loaded, file, where, task=task, skip_bad=skip_bad, show=show, as_json=as_json, asked=asked)
            return
        assert text is not None
        if stream:
            for piece in loaded.stream(text, pair, task, **{**asked, **asked.pop("generation")}):
                print(piece, end="", file=where, flush=True)
            print(file=where)
            return
        tasks = None if task is None else [task]
        values = loaded.predict([text], [pair], tasks, **asked)[0].to_json()
        print(_shown(values, as_json=as_json or out is not None, probabilities=probabilities), file=where)


def _check_words(text: str | None, file: Path | None, pair: str | None, *, stream: bool, elsewhere: bool) -> None:
    """Refuse words of the command line that do not go together."""
    if (text is None) == (file is None):
        raise ConfigError("give either a text or --file JSONL")
    if file is not None and pair is not None:
        raise ConfigError("--pair goes with a text; rows of a file hold their own 'pair'")
    if stream and (file is not None or elsewhere):
        raise ConfigError(
            "--stream shows one text as it is written; leave out --file, --json, --out and --probabilities"
        )


def _predict_file(
    system: Any,
    file: Path,
    stream: TextIO,
    *,
    task: str | None,
    skip_bad: bool,
    show: Callable[[dict[str, Any]], str],
    as_json: bool,
    asked: dict[str, Any],
) -> None:
    """Stream the answers to a file's rows, and end with the number of rows left out."""
    from dynamorouter.system.predict_file import predict_lines
    from dynamorouter.utils.jsonl import SkipCount

    skipped = SkipCount()
    counted = skipped if skip_bad else None
    for row, prediction in predict_lines(system, file, task=task, skip_bad=counted, asked=asked):
        values = prediction.to_json()
        if as_json:
            values = {"line": row.number, **({} if row.id is None else {"id": row.id}), **values}
        shown = show(values)
        print(shown if as_json else f"{shown:<40} | {_start(row.text, row.pair)}", file=stream, flush=True)
    if skip_bad:
        for message in skipped.messages:
            print(f"skipped: {message}", file=sys.stderr)
        print(f"{skipped.count} bad rows skipped", file=sys.stderr)


def _shown(values: dict[str, Any], *, as_json: bool, probabilities: bool) -> str:
    if as_json:
        return json.dumps(values, ensure_ascii=False)
    from dynamorouter.cli.tables import prediction_line

    chances = values.get("label_probabilities") if probabilities else None
    shown = ", ".join(f"{label} {chance:.3f}" for label, chance in (chances or {}).items())
    return f"{prediction_line(values)}{shown and f'  ({shown})'}"


def _start(text: str, pair: str | None) -> str:
    """Return the beginning of a row on one line, control characters left out."""
    whole = " ".join(text.split()) + (f" / {' '.join(pair.split())}" if pair else "")
    clean = "".join(c for c in whole if c.isprintable())
    return clean if len(clean) <= 70 else f"{clean[:67]}..."
