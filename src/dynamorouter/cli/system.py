"""The commands that make a saved system and change it: ``new``, ``import``, ``expert ...``, ``fit router SYSTEM``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dynamorouter.errors import ConfigError

if TYPE_CHECKING:
    from dynamorouter.system.joining import AddedExpert
    from dynamorouter.system.routes import RouterFit

expert = typer.Typer(help="List, train, add or remove the experts of a system.", no_args_is_help=True)

SystemDir = Annotated[Path, typer.Argument(metavar="SYSTEM", help="A saved system, such as runs/quickstart/system.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Rows = Annotated[
    Path, typer.Option("--data", metavar="DIR", help="Rows: TASK/train.jsonl, and validation.jsonl if there is one.")
]
MaxLoss = Annotated[
    float,
    typer.Option(
        "--max-loss",
        min=0.0,
        max=1.0,
        help="Largest share of an old expert's kept rows that may lose their route; beyond it nothing is changed.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings as recipes have them.", show_default=False),
]
ExpertName = Annotated[
    str | None, typer.Option("--name", help="Name of the expert; that of the task by default.", show_default=False)
]
BaseName = Annotated[
    str | None,
    typer.Option(
        "--base", metavar="NAME", help="Its base, if the task names none; see 'list bases'.", show_default=False
    ),
]
LOSS = 0.02


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("new")(new)
    app.command("import")(import_)
    app.add_typer(expert, name="expert")


def new(
    system: Annotated[Path, typer.Argument(metavar="SYSTEM", help="Where the system is written.")],
    base: Annotated[
        str, typer.Option("--base", metavar="BASE", help="Its base: a name, a folder, a GGUF file, or a hub id.")
    ],
) -> None:
    """Make a system of a base alone, for experts to be added to."""
    from dynamorouter.system.system import System

    if system.exists():
        raise ConfigError(f"{str(system)!r} is there already; give another place, or delete it first")
    made = System.new(base)
    made.save(system)
    print(f"made a system over base {made.router_base!r}, without experts yet: {system}")


def import_(
    system: SystemDir,
    folder: Annotated[str, typer.Argument(metavar="ADAPTERS", help="A folder of adapters' folders, one, or a hub id.")],
    *,
    data: Rows,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="NAME=TASK", help="Task of an adapter: a name or a YAML file; may be repeated."),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option("--labels", metavar="NAME=A,B,..", help="Labels of an adapter in the order of its outputs."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of draws, new heads and the router.")] = 0,
    max_loss: MaxLoss = LOSS,
) -> None:
    """Import adapters that PEFT trained, score each, and fit the router once."""
    from dynamorouter.system import edit
    from dynamorouter.system.adapters import find_adapters
    from dynamorouter.utils.progress import shown_progress

    names = list(find_adapters(folder))
    tasks = _by_name(task or [], names, "--task")
    orders = _by_name(labels or [], names, "--labels")
    with shown_progress() as progress:
        added, fit = edit.import_adapters(
            system,
            folder,
            data=data,
            tasks=tasks,
            labels={name: _labels(text) for name, text in orders.items()},
            seed=seed,
            max_loss=max_loss,
            progress=progress,
        )
    _say(added, fit, system)


@expert.command("list")
def expert_list(system: SystemDir, as_json: Json = False) -> None:
    """List the experts of a system."""
    from dynamorouter.system import edit

    rows = [dict(row) for row in edit.list_experts(system)]
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    from dynamorouter.cli.tables import print_rows

    heads = list(dict.fromkeys(key for row in rows for key in row))
    print_rows(heads, [[row.get(head) for head in heads] for row in rows])


@expert.command("train")
def expert_train(
    system: SystemDir,
    settings: Settings = None,
    *,
    task: Annotated[str, typer.Option("--task", metavar="NAME|FILE", help="Its task: a name, or a task's YAML file.")],
    data: Rows,
    name: ExpertName = None,
    base: BaseName = None,
    max_loss: MaxLoss = LOSS,
) -> None:
    """Train a further expert, the others left as they are, and let the router choose it (experts.KEY=VALUE, seed=N)."""
    from dynamorouter.config.parts import settings_of
    from dynamorouter.config.tasks import find_task
    from dynamorouter.system import edit
    from dynamorouter.utils.progress import shown_progress

    parts = settings_of(settings or [], allowed=("seed", "experts"))
    named = find_task(task)
    with shown_progress() as progress:
        added, fit = edit.train_expert(
            system,
            name=name or named.name,
            task=named.model_copy(update={"base": base or named.base}),
            data=data,
            settings=parts.experts,
            seed=parts.seed,
            max_loss=max_loss,
            progress=progress,
        )
    _say([added], fit, system)


@expert.command("add")
def expert_add(
    system: SystemDir,
    folder: Annotated[str, typer.Argument(metavar="ADAPTER", help="A PEFT adapter folder, or its hub id.")],
    *,
    task: Annotated[str, typer.Option("--task", metavar="NAME|FILE", help="Its task: a name, or a task's YAML file.")],
    data: Rows,
    name: ExpertName = None,
    base: BaseName = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="A,B,..", help="Labels in the order of its head's outputs, if it has none."),
    ] = None,
    max_loss: MaxLoss = LOSS,
) -> None:
    """Add an adapter trained elsewhere, and let the router choose it."""
    from dynamorouter.config.tasks import find_task
    from dynamorouter.system import edit
    from dynamorouter.utils.progress import shown_progress

    named = find_task(task)
    with shown_progress() as progress:
        added, fit = edit.add_expert(
            system,
            folder,
            name=name or named.name,
            task=named.model_copy(update={"base": base or named.base}),
            data=data,
            labels=None if labels is None else _labels(labels),
            max_loss=max_loss,
            progress=progress,
        )
    _say([added], fit, system)


@expert.command("export")
def expert_export(
    system: SystemDir,
    name: Annotated[str, typer.Argument(help="Name of the expert.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to; it must not be there yet.")],
) -> None:
    """Write an expert as PEFT writes a trained classifier, tagger or question answerer, its head included."""
    from dynamorouter.system import edit

    edit.export_expert(system, name, folder)
    print(f"exported expert {name!r}: {folder}")


@expert.command("remove")
def expert_remove(system: SystemDir, name: Annotated[str, typer.Argument(help="Name of the expert.")]) -> None:
    """Remove an expert; the router shares its probability out among the others."""
    from dynamorouter.system import edit

    edit.remove_expert(system, name)
    print(f"removed expert {name!r}: {system}")


def fit_saved_router(system: Path, settings: Sequence[str], *, data: Path | None, max_loss: float) -> None:
    """Fit the router of a saved system, on what is kept of its experts' rows and on those of ``data``."""
    from dynamorouter.config.parts import settings_of
    from dynamorouter.system import edit
    from dynamorouter.utils.progress import shown_progress

    parts = settings_of(settings, allowed=("seed", "router"))
    with shown_progress() as progress:
        fit = edit.fit_router(
            system, data=data, settings=parts.router, seed=parts.seed, max_loss=max_loss, progress=progress
        )
    _say([], fit, system)


def _say(added: Sequence[AddedExpert], fit: RouterFit, system: Path) -> None:
    """Print what joined, how good it is, and what the router makes of each expert's kept rows."""
    for one in added:
        for note in one.notes:
            print(f"note: {one.name}: {note}")
        trained = f", trained on {one.train_rows} rows" if one.train_rows else ""
        print(f"{one.name}: {one.matched_layers} layers changed by {one.delta_norm:.4g} together{trained}")
        print(one)
    if fit.left_out:
        print(f"not routed to, since nothing is known of their rows: {', '.join(fit.left_out)}")
    how = "old routes were kept, and new experts joined" if fit.way == "grown" else "it was fitted anew"
    print(f"router {fit.kind}: {how}; share of each expert's kept rows that it sends there:")
    for name, share in fit.accuracy.items():
        before = fit.accuracy_before.get(name)
        print(f"  {name} {share:.3f}" + ("" if before is None else f" (before {before:.3f})"))
    names = ", ".join(repr(one.name) for one in added)
    print(f"added {names}: {system}" if added else f"fitted the router: {system}")


def _by_name(words: Sequence[str], names: Sequence[str], option: str) -> dict[str, str]:
    """Return the values of ``NAME=VALUE`` words; a name may be left out where there is one adapter.

    Raises:
        ConfigError: a name is left out though there are several.
    """
    values = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals and len(names) != 1:
            raise ConfigError(f"{option} is {word!r}, but there are {len(names)} adapters; write {option} NAME={word}")
        values[name if equals else names[0]] = value if equals else word
    return values


def _labels(text: str) -> list[str]:
    return [label.strip() for label in text.split(",")]
