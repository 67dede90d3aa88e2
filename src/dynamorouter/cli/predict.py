"""The command ``predict``: a label, an answer or a written text for one text, or for each row of a file."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from dynamorouter.errors import ConfigError


def add_predict(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(name="predict")(predict)


def predict(
    system: Annotated[Path, typer.Argument(metavar="SYSTEM", help="A saved system, such as runs/quickstart/system.")],
    text: Annotated[str | None, typer.Argument(help="The text, or the question.", show_default=False)] = None,
    pair: Annotated[str | None, typer.Option("--pair", help="The second text, or the context of the question.")] = None,
    task: Annotated[
        str | None, typer.Option("--task", metavar="NAME", help="Use this task's expert; do not route.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="JSONL", help="Rows with text and pair, or question and context.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave broken rows out and count them.")] = False,
    out: Annotated[Path | None, typer.Option("--out", metavar="JSONL", help="Write the answers to this file.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Write one text, and show it as it is written.")] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", metavar="N", min=1, help="Longest written answer, in tokens.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", metavar="T", min=0.0, help="0 is greedy; above, tokens are drawn.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", metavar="P", help="Draw among the likeliest tokens of this share.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", metavar="K", min=0, help="Draw among so many of the likeliest tokens.")
    ] = None,
    no_repeat_ngram: Annotated[
        int | None, typer.Option("--no-repeat-ngram", metavar="N", min=0, help="Write no run of N tokens twice.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option("--repetition-penalty", metavar="F", help="Above 1: repeat less.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="A text that ends the writing; may be repeated.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Of what is drawn.")] = None,
) -> None:
    """Answer a text, or each row of a file: chosen expert, confidence, answer."""
    _check_words(text, file, pair, stream=stream, elsewhere=as_json or out is not None)
    from dynamorouter.system.system import System
    from dynamorouter.utils.files import writing

    asked: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "no_repeat_ngram": no_repeat_ngram,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    generation = {key: value for key, value in asked.items() if value is not None}
    if stop:
        generation["stop"] = tuple(stop)
    loaded = System.load(system)
    with ExitStack() as stack:
        where = sys.stdout
        if out is not None:
            where = stack.enter_context(stack.enter_context(writing(out)).open("w", encoding="utf-8"))
        if file is not None:
            as_json = as_json or out is not None
            _predict_file(loaded, file, where, task=task, skip_bad=skip_bad, as_json=as_json, generation=generation)
            return
        assert text is not None
        if stream:
            for piece in loaded.stream(text, pair, task, **generation):
                print(piece, end="", file=where, flush=True)
            print(file=where)
            return
        tasks = None if task is None else [task]
        values = loaded.predict([text], [pair], tasks, generation=generation)[0].to_json()
        print(_shown(values, as_json=as_json or out is not None), file=where)


def _check_words(text: str | None, file: Path | None, pair: str | None, *, stream: bool, elsewhere: bool) -> None:
    """Refuse words of the command line that do not go together."""
    if (text is None) == (file is None):
        raise ConfigError("give either a text or --file JSONL")
    if file is not None and pair is not None:
        raise ConfigError("--pair goes with a text; rows of a file hold their own 'pair'")
    if stream and (file is not None or elsewhere):
        raise ConfigError("--stream shows one text as it is written; leave out --file, --json and --out")


def _predict_file(
    system: Any,
    file: Path,
    stream: TextIO,
    *,
    task: str | None,
    skip_bad: bool,
    as_json: bool,
    generation: dict[str, Any],
) -> None:
    """Stream the answers to a file's rows, and end with the number of rows left out."""
    from dynamorouter.system.predict_file import predict_lines
    from dynamorouter.utils.jsonl import SkipCount

    skipped = SkipCount()
    counted = skipped if skip_bad else None
    for row, prediction in predict_lines(system, file, task=task, skip_bad=counted, generation=generation):
        values = prediction.to_json()
        if as_json:
            values = {"line": row.number, **({} if row.id is None else {"id": row.id}), **values}
        shown = _shown(values, as_json=as_json)
        print(shown if as_json else f"{shown:<40} | {_start(row.text, row.pair)}", file=stream, flush=True)
    if skip_bad:
        for message in skipped.messages:
            print(f"skipped: {message}", file=sys.stderr)
        print(f"{skipped.count} bad rows skipped", file=sys.stderr)


def _shown(values: dict[str, Any], *, as_json: bool) -> str:
    if as_json:
        return json.dumps(values, ensure_ascii=False)
    from dynamorouter.cli.tables import prediction_line

    return prediction_line(values)


def _start(text: str, pair: str | None) -> str:
    """Return the beginning of a row on one line, control characters left out."""
    whole = " ".join(text.split()) + (f" / {' '.join(pair.split())}" if pair else "")
    clean = "".join(c for c in whole if c.isprintable())
    return clean if len(clean) <= 70 else f"{clean[:67]}..."
