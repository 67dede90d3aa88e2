"""``dynamorouter explore``: look at the data before training on it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dynamorouter.explore.lengths import Tokenizer
    from dynamorouter.tasks.task import Task

explore = typer.Typer(help="Look at the data before training on it.", no_args_is_help=True)


@explore.command("data")
def explore_data(
    tasks: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TASK]...", help="Names or YAML files of tasks; all that DIR holds by default."),
    ] = None,
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where tables and plots are written.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Folder with TASK/SPLIT.jsonl; the built-in data by default."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", metavar="BASE|DIR", help="Count truncation in its tokens; words by default."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", metavar="N", min=1, help="The window; each task's own by default.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Most rows per split, drawn at random.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of draws and intervals.")] = 0,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="Draw pictures (extra 'plots').")] = True,
) -> None:
    """Balance, lengths, correlations, duplicates, vocabulary and truncation, as tables, sentences and plots."""
    from dynamorouter.explore import report

    if plots:
        from dynamorouter.explore.plots import require

        require()
    found = report.explore(
        _tasks(tasks, data),
        "builtin" if data is None else "local",
        {} if data is None else {"root": str(data)},
        tokenizer=None if tokenizer is None else _tokenizer(tokenizer),
        max_tokens=max_tokens,
        limit=limit,
        seed=seed,
        advance=lambda line: print(line, flush=True),
    )
    pictures = []
    if plots:
        from dynamorouter.explore.plots import draw

        pictures = draw(found, out)
    report.write(found, out, pictures)
    for answer in found.answers:
        print(f"{answer.task}: {answer.question} {answer.words}")
    print(f"written to {out}")


def _tasks(names: list[str] | None, data: Path | None) -> list[Task]:
    """Return the named tasks, or all that there is data for."""
    from dynamorouter.config import list_names, task_settings
    from dynamorouter.data import builtin
    from dynamorouter.errors import DataError
    from dynamorouter.tasks.load import task_from_config

    if not names:
        known = list_names("tasks")
        there = builtin.names() if data is None else sorted(path.name for path in data.glob("*") if path.is_dir())
        names = [name for name in there if name in known]
        if not names:
            raise DataError(f"{data} holds no folder of a known task ({', '.join(known)}); name a task's YAML file")
    return [task_from_config(task_settings(name).model_dump(mode="json")) for name in names]


def _tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer of a base by name, or of a folder."""
    from dynamorouter.config import CONF, list_names
    from dynamorouter.errors import ConfigError, one_of, suggest

    place = name
    if not Path(name).is_dir():
        known = list_names("bases")
        if name not in known:
            raise ConfigError(
                f"--tokenizer is {name!r}{suggest(name, known)}; give a folder, or one of {one_of(known)}"
            )
        import yaml

        from dynamorouter.model.base import BaseSpec

        settings = yaml.safe_load((CONF / "base" / f"{name}.yaml").read_text(encoding="utf-8"))
        place = BaseSpec(name, settings["path"], settings.get("fallback")).locate()
    from transformers import AutoTokenizer

    try:
        loaded: Tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load a tokenizer from {place!r}: {error}") from error
    return partial(loaded, verbose=False)  # rows longer than the base reads are what is looked for, no mishap
