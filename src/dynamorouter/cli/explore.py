"""``dynamorouter explore``: look at the data before training on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dynamorouter.data.complexity.prepare import TierOptions
    from dynamorouter.data.config import FilterConfig
    from dynamorouter.explore.lengths import Tokenizer
    from dynamorouter.tasks.record import Record
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
    from dynamorouter.explore.figures import draw
    from dynamorouter.explore.survey import explore, write
    from dynamorouter.report.style import plotting

    if plots:
        plotting()  # before any work
    survey = explore(
        _tasks(tasks, data),
        "builtin" if data is None else "local",
        {} if data is None else {"root": str(data)},
        tokenizer=None if tokenizer is None else _tokenizer(tokenizer),
        max_tokens=max_tokens,
        limit=limit,
        seed=seed,
        say=lambda line: print(line, flush=True),
    )
    write(survey, out, draw(survey) if plots else ())
    for answer in survey.answers:
        print(f"{answer.task}: {answer.question} {answer.words}")
    print(f"written to {out}")


def _tasks(names: list[str] | None, data: Path | None) -> list[Task]:
    """Return the named tasks, or all that there is data for."""
    from dynamorouter.config.files import list_names
    from dynamorouter.config.tasks import find_task
    from dynamorouter.data import builtin
    from dynamorouter.errors import DataError

    if not names:
        task_names = list_names("tasks")
        folders = builtin.names() if data is None else sorted(path.name for path in data.glob("*") if path.is_dir())
        names = [name for name in folders if name in task_names]
        if not names:
            raise DataError(
                f"{data} holds no folder of a known task ({', '.join(task_names)}); name a task's YAML file"
            )
    return [find_task(name) for name in names]


def _tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer of a base by name, or of a folder."""
    from dynamorouter.config.files import CONF, list_names
    from dynamorouter.errors import ConfigError, one_of, suggest

    location = name
    if not Path(name).is_dir():
        base_names = list_names("bases")
        if name not in base_names:
            raise ConfigError(
                f"--tokenizer is {name!r}{suggest(name, base_names)}; give a folder, or one of {one_of(base_names)}"
            )
        import yaml

        from dynamorouter.model.base.config import BaseSpec

        settings = yaml.safe_load((CONF / "base" / f"{name}.yaml").read_text(encoding="utf-8"))
        location = BaseSpec.model_validate(settings).locate()
    from transformers import AutoTokenizer

    try:
        loaded: Tokenizer = AutoTokenizer.from_pretrained(location)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load a tokenizer from {location!r}: {error}") from error
    return partial(loaded, verbose=False)  # rows longer than the base reads are what is looked for, no mishap


JSON, PICTURE = "complexity.json", "complexity"


def explore_complexity(
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[complexity.KEY=VALUE]...", help="Weights, caps and thresholds as a run has them."),
    ] = None,
    *,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where numbers and picture are written; else nowhere.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Folder with TASK/train.jsonl; the built-in instructions if not."),
    ] = None,
    task: Annotated[
        str, typer.Option("--task", metavar="NAME|FILE", help="Columns and folder: that of a tier, or another task's.")
    ] = "simple",
    pipeline: Annotated[
        str | None, typer.Option("--pipeline", metavar="NAME|DIR", help="auto, own, en_core_web_sm, or a folder.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=3, help="Most rows, the first.")] = None,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="Draw the distributions (extra 'plots').")] = True,
    image: Annotated[str, typer.Option("--format", metavar="png|svg", help="Format of the picture.")] = "png",
) -> None:
    """Distribution of every complexity feature, the score, the tiers in three ways, and examples at the edges."""
    from dynamorouter.errors import ConfigError
    from dynamorouter.explore.complexity import survey
    from dynamorouter.utils.progress import shown_progress

    if image not in ("png", "svg"):
        raise ConfigError(f"--format is {image!r}; allowed: png, svg")
    drawing = out is not None and plots
    if drawing:
        from dynamorouter.report.style import plotting

        plotting()  # before any work
    options = _tier_options(settings or [], pipeline)
    records = _records(task, data, options.filters)[:limit]
    with shown_progress() as progress:
        complexities = survey(records, ("simple", "medium", "complex"), options=options, progress=progress)
    values = complexities.to_json()
    print_survey(values)
    if out is None:
        return
    from dynamorouter.utils.files import write_json, writing

    out.mkdir(parents=True, exist_ok=True)
    write_json(out / JSON, values)
    if drawing:
        from dynamorouter.explore.complexity_figures import draw

        with writing(out / f"{PICTURE}.{image}") as temporary:
            temporary.write_bytes(draw(complexities, form=image))
    print(f"written to {out}")


def _tier_options(settings: Sequence[str], pipeline: str | None) -> TierOptions:
    """Return how a run with these settings would part its rows."""
    from dynamorouter.config.compose import compose
    from dynamorouter.runs.build import tier_options

    config = compose("complexity", list(settings))
    assert config.complexity is not None
    changes = {} if pipeline is None else {"pipeline": pipeline}
    return tier_options(config, config.complexity.model_copy(update=changes))


def _records(name: str, data: Path | None, filters: FilterConfig) -> list[Record]:
    """Return the train rows of a task's data, filtered as for training."""
    from dynamorouter.config.tasks import find_task
    from dynamorouter.data.complexity.record import KEY
    from dynamorouter.data.dedup import read_split_rows
    from dynamorouter.data.sources import source_options

    task = find_task(name)
    extra = {key: column for key, column in task.columns.extra.items() if key != KEY}
    task = task.model_copy(update={"columns": task.columns.model_copy(update={"extra": extra})})
    source, overrides = ("builtin", {}) if data is None else ("local", {"root": str(data)})
    options = source_options(task, source, overrides)
    pools = read_split_rows(task, 0, source, options, filters)
    return pools["train"].records


def print_survey(values: Mapping[str, Any]) -> None:
    """Print what ``Survey.to_json`` returned: a line per feature, the tiers, the examples."""
    from dynamorouter.cli.tables import console, print_rows

    heads = ["mean", "std", "min", "p10", "p25", "p50", "p75", "p90", "max"]
    print_rows(
        [f"of {values['rows']} rows", *heads],
        [[name, *(float(statistics[head]) for head in heads)] for name, statistics in values["features"].items()],
    )
    names = list(next(iter(values["tiers"].values()))["rows"])
    print_rows(
        ["tiers by", "cuts of the score", *names],
        [
            [method, ", ".join(f"{cut:.3f}" for cut in statistics["cuts"]) or "-", *statistics["rows"].values()]
            for method, statistics in values["tiers"].items()
        ],
    )
    out = console()
    for method, why in values["refused"].items():
        out.print(f"{method}: {why}", soft_wrap=True, markup=False)
    for edge, examples in values["examples"].items():
        out.print(f"{edge}:", markup=False)
        for example in examples:
            out.print(f"  {example['score']:.3f}  {example['text']}", soft_wrap=True, markup=False)
    out.print(f"parsed by {values['pipeline']}", markup=False)


def print_complexity(report: Mapping[str, Any]) -> None:
    """Print the part ``complexity`` of a report, where there is one."""
    section = report.get("complexity")
    if not section:
        return
    from dynamorouter.cli.tables import console, print_rows

    out = console()
    if "arms" in section:
        tiers = list(section["arms"]["base"]["by_tier"])
        print_rows(
            ["arm", "loss", "95 %", "perplexity", *(f"loss, {tier}" for tier in tiers)],
            [
                [name, arm["loss"], _span(arm["loss_ci95"]), f"{arm['perplexity']:.2f}", *arm["by_tier"].values()]
                for name, arm in section["arms"].items()
            ],
        )
    if "differences" in section:
        print_rows(
            ["difference of the loss", "value", "95 %"],
            [[name, gap["loss"], _span(gap["ci95"])] for name, gap in section["differences"].items()],
        )
    routing, latency = section["routing"], section["latency_ms"]
    print_rows(
        ["routing", "value"],
        [
            ["accuracy", routing["accuracy"]],
            ["accuracy of the majority class", routing["majority"]],
            ["accuracy of the length alone", routing["length_only"]],
            ["complexity, mean squared error", routing["complexity_mse"]],
            ["... of the mean of train", routing["complexity_mse_of_mean"]],
            ["... of the length alone", routing["complexity_mse_of_length"]],
            ["complexity, R2", routing["complexity_r2"]],
            ["usage", ", ".join(f"{name} {share:.3f}" for name, share in routing["usage"].items())],
            ["Gini of the usage", routing["gini"]],
            ["ms a prompt, in batches: router (with base)", _both(latency, "batch")],
            ["ms a prompt, one at a time: router (with base)", _both(latency, "single")],
        ],
    )
    if "parameters" in section:
        sizes = section["parameters"]
        out.print(f"parameters: {sizes['tiers']} of the tiers' experts, {sizes['one_lora']} of the one LoRA")


def _span(interval: list[float]) -> str:
    low, high = interval
    return f"{low:.4f} - {high:.4f}"


def _both(latency: Mapping[str, float], kind: str) -> str:
    return f"{latency[kind]:.3f} ({latency[f'{kind}_with_base']:.3f})"
