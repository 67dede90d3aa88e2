"""The commands of merging: ``merge SYSTEM EXPERT...``, ``merge doctor``, ``merge verify``, ``merge moments``.

A first word that is none of the commands is the system of a merge; one called like a command is given as ``./doctor``.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dynamorouter.errors import ConfigError, one_of

DEFAULT = "experts"


class _MergeGroup(TyperGroup):
    """A group whose command ``experts`` may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command in front unless the first word is a command, or asks for help."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


merge = typer.Typer(
    cls=_MergeGroup,
    help="Make one expert of several: dynamorouter merge SYSTEM EXPERT... --method NAME --out NAME",
    no_args_is_help=True,
)
SystemDir = Annotated[Path, typer.Argument(metavar="SYSTEM", help="A saved system, such as runs/quickstart/system.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@merge.command(DEFAULT)
def merge_experts(
    system: SystemDir,
    experts: Annotated[list[str], typer.Argument(metavar="EXPERT...", help="Names of the experts to merge.")],
    *,
    method: Annotated[str, typer.Option("--method", metavar="NAME", help="See 'dynamorouter list merges'.")],
    out: Annotated[str, typer.Option("--out", metavar="NAME", help="Name of the merge.")],
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="W,W|EXPERT=W,..", help="One per expert, in order or by name.")
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", metavar="K", help="Keep this rank.")] = None,
    energy: Annotated[
        float | None, typer.Option("--energy", metavar="P", help="Keep this share of the energy.")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Keep everything (the default).")] = False,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="An option of the method; may be repeated."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="TASK/train.jsonl, for methods that need rows.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", metavar="N", min=1, help="Most rows of each task.")] = 256,
    seed: Annotated[int, typer.Option("--seed", help="Of random methods and of the draw of rows.")] = 0,
    replace: Annotated[
        bool, typer.Option("--replace", help="Answer the experts' tasks over the merge; their own factors are lost.")
    ] = False,
) -> None:
    """Merge experts and add the result to the system's library, each task with its own head (the default command)."""
    policy = _output(rank, energy, exact)
    texts = dict(_pair(text, "--option", "density=0.3") for text in option or [])
    from dynamorouter.system import merge as merging

    result = merging.add_merge(
        system,
        experts,
        name=out,
        method=method,
        weights=_weights(weights),
        output=policy,
        options={key: _value(value) for key, value in texts.items()},
        data=data,
        rows=rows,
        seed=seed,
        replace_sources=replace,
    )
    shares = ", ".join(f"{name} {weight:g}" for name, weight in result.weights.items())
    print(f"merged {shares} by {method} in {result.seconds:.2f} s: rank up to {result.lora.rank}, {result.output}")
    print(f"relative error of what is kept: {result.error:.2e}, worst layer {max(result.errors.values()):.2e}")
    for note in result.notes:
        print(f"note: {note}")
    if replace:
        print(f"{', '.join(experts)} answer over the merge from now on: {system}")
    else:
        print(f"added {', '.join(f'{out}.{name}' for name in experts)}: {system}")


@merge.command("doctor")
def merge_doctor(
    system: SystemDir,
    experts: Annotated[
        list[str] | None, typer.Argument(metavar="[EXPERT]...", help="Names; all that can be merged by default.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option("--method", metavar="NAME", help="Predict this method; may be repeated.")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Show each layer of each pair.")] = False,
    as_json: Json = False,
) -> None:
    """Say which experts conflict, before anything is merged, and what a merge would keep of each."""
    from dynamorouter.merging.diagnose import METHODS
    from dynamorouter.system import merge as merging

    diagnosis = merging.doctor(system, experts or [], methods=method or METHODS)
    if as_json:
        print(json.dumps(diagnosis.to_json(), indent=2, ensure_ascii=False))
        return
    from dynamorouter.cli.tables import print_rows

    heads = ["experts", *(["layer"] if layers else []), "cosine", "signs differ", "outputs", "inputs", "angle"]
    conflicts = diagnosis.layers if layers else diagnosis.pairs
    print("Conflicts: signs that differ among the largest entries of both (0.5 by chance), overlap of what is written")
    print("to (outputs) and read from (inputs), from 0 to 1, and the smallest angle between the outputs in degrees.")
    print_rows(
        heads,
        [
            [
                f"{c.one} / {c.other}",
                *([str(c.layer)] if layers else []),
                *(round(value, 4) for value in (c.cosine, c.signs, c.outputs, c.inputs)),
                f"{c.angle:.1f}",
            ]
            for c in conflicts
        ],
    )
    print("What a merge with default weights keeps of each expert's change (1 is all), what it adds that is not the")
    print("expert's, and how far it is from the expert, as shares of the expert's change (the bare base is 1 away).")
    print_rows(
        ["method", "expert", "kept", "foreign", "distance"],
        [[f.method, f.expert, round(f.kept, 4), round(f.foreign, 4), round(f.loss, 4)] for f in diagnosis.forecasts],
    )
    needed = ", ".join(f"{rank} for {float(share):.0%}" for share, rank in diagnosis.rank.items())
    print(f"rank of the sum that the neediest layer takes: {needed} of the energy")


@merge.command("verify")
def merge_verify(
    system: SystemDir,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A merge, or an expert.")],
    as_json: Json = False,
) -> None:
    """Load a merge with PEFT and compare its outputs with ours; the exit status is 1 where they differ."""
    from dynamorouter.system import merge as merging

    rows = merging.verify(system, name)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        from dynamorouter.cli.tables import print_rows

        heads = ["expert", "difference to PEFT", "change to the base", "verdict"]
        print_rows(
            heads,
            [
                [r["expert"], f"{r['difference']:.1e}", f"{r['change']:.1e}", "ok" if r["ok"] else "differs"]
                for r in rows
            ],
        )
    if not all(row["ok"] for row in rows):
        raise typer.Exit(1)


@merge.command("moments")
def merge_moments(
    system: SystemDir,
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Folder with TASK/train.jsonl.")],
    rows: Annotated[int, typer.Option("--rows", metavar="N", min=1, help="Most rows of each task.")] = 256,
    seed: Annotated[int, typer.Option("--seed", help="Of the draw of rows.")] = 0,
) -> None:
    """Store what RegMean has to know of each task's inputs beside its expert, for merges without data."""
    from dynamorouter.system import merge as merging

    for name, size in merging.keep_moments(system, data, rows=rows, seed=seed).items():
        print(f"{name}: {size / 2**20:.1f} MiB")


def _output(rank: int | None, energy: float | None, exact: bool) -> str:
    bounds = [f"rank={rank}" if rank is not None else "", f"energy={energy}" if energy is not None else ""]
    chosen = [text for text in (*bounds, "exact" if exact else "") if text]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} exclude each other; give one of --rank, --energy and --exact")
    return chosen[0] if chosen else "exact"


def _pair(text: str, where: str, example: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise ConfigError(f"{where} {text!r} is not KEY=VALUE, such as {example}")
    return key.strip(), value.strip()


def _value(text: str) -> Any:
    """Read a number, true, false or null; anything else is a word."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _weights(text: str | None) -> list[float] | dict[str, float] | None:
    """Read ``0.5,0.5`` or ``sst2=0.7,ag_news=0.3``."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    try:
        if "=" in text:
            pairs = [_pair(part, "--weights", "sst2=0.5") for part in parts]
            twice = sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            if twice:
                raise ConfigError(f"--weights {text!r} names {one_of(twice)} more than once; give one weight each")
            return {key: float(value) for key, value in pairs}
        return [float(part) for part in parts]
    except ValueError:
        raise ConfigError(
            f"--weights {text!r} holds something that is no number; give 0.5,0.5 or sst2=0.5,.."
        ) from None
