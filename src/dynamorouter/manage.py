"""What is done to a saved system: scoring it on files, adding an adapter trained elsewhere, removing an expert."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from dynamorouter.builders import base_spec
from dynamorouter.config import compose, list_names
from dynamorouter.data.convert import native_records
from dynamorouter.data.jsonl import SkipCount
from dynamorouter.data.records import Record
from dynamorouter.data.sources import load as load_rows
from dynamorouter.data.sources.local import has_split as local_has_split
from dynamorouter.data.split import draw
from dynamorouter.errors import AdapterError, DataError, LibraryError, one_of, suggest
from dynamorouter.evaluate import score_system
from dynamorouter.files import checked_name, write_json, writing_folder
from dynamorouter.learn.experts import fit_experts
from dynamorouter.learn.loop import LoopOptions
from dynamorouter.learn.trainee import ExpertPlan
from dynamorouter.library import Library
from dynamorouter.model.base import Base
from dynamorouter.model.expert import Expert, seeded
from dynamorouter.model.heads import Head, build_head
from dynamorouter.model.peft_format import Adapter, load_adapter
from dynamorouter.routing.store import kind_of
from dynamorouter.routing_phase import RouterRows, fit_system_router
from dynamorouter.system import EXPERTS, System
from dynamorouter.tasks.task import Task
from dynamorouter.tracking import Progress

DENSE_TANH = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Architectures whose classifier is a dense layer, tanh and an output layer over the first token."""
ROUTER_ROWS = 1000
"""Most rows per task that the router is fitted on again when an expert joins."""


def score(
    system: Path, data: Path, split: str, out: Path, *, limit: int | None = None, skip_bad: bool = False
) -> dict[str, Any]:
    """Score the system's tasks that ``data`` holds as ``TASK/SPLIT.jsonl`` in native columns, and write ``out``.

    Args:
        system: a saved system.
        data: folder of folders.
        split: name of the files.
        out: where the scores are written.
        limit: most rows per task, from the top of each file.
        skip_bad: leave broken rows out and count them, instead of stopping at the first.

    Raises:
        DataError: ``data`` holds none of the system's tasks, or a row is broken.
    """
    if out.is_dir():
        raise DataError(f"--out {str(out)!r} is a folder; name a file, such as {str(out / 'scores.json')!r}")
    out.parent.mkdir(parents=True, exist_ok=True)
    loaded = System.load(system)
    skipped = SkipCount()
    records: dict[str, list[Record]] = {}
    for expert in loaded.experts:
        if has_split(data, expert.task, split):
            counted = skipped if skip_bad else None
            records[expert.name] = read_split(expert.task, data, split, limit=limit, skip_bad=counted)
    if not records:
        found = one_of(path.name for path in data.iterdir() if path.is_dir()) if data.is_dir() else "no such folder"
        raise DataError(
            f"{data} holds none of the system's tasks with a split {split!r}: looked for "
            f"{one_of(loaded.names)} and found {found or 'no folder'}; give --data DIR with DIR/TASK/{split}.jsonl"
        )
    with Progress("score", sum(map(len, records.values()))) as progress:
        scores = score_system(loaded, records, seed=int(loaded.info.get("seed", 0)), advance=progress.advance)
    scores["skipped"] = skipped.count
    scores["not_scored"] = [name for name in loaded.names if name not in records]
    write_json(out, scores)
    return scores


def has_split(data: Path, task: Task, split: str) -> bool:
    """Tell whether a folder holds a split of a task."""
    checked_name(task.name, kind="task")
    return local_has_split(task, checked_name(split, kind="split"), _options(task, data))


def read_split(
    task: Task, data: Path, split: str, *, limit: int | None = None, skip_bad: SkipCount | None = None
) -> list[Record]:
    """Read rows of one task from a folder in native columns.

    Raises:
        DataError: a row, named by number, is broken and ``skip_bad`` is not given, or there are none.
    """
    rows = load_rows(task, split, "local", _options(task, data), skip_bad=skip_bad)
    found = list(islice(native_records(task, 0, rows, split=split, skip_bad=skip_bad), limit))
    if not found:
        raise DataError(f"{data / task.name} holds no rows in its split {split!r}; give a file with at least one")
    return found


def _options(task: Task, data: Path) -> dict[str, Any]:
    """Return what the task says of local files, with ``data`` as their root."""
    return {**task.sources.get("local", {}), "root": str(data)}


def list_experts(system: Path) -> list[dict[str, Any]]:
    """Describe the experts of a saved system."""
    loaded = System.load(system)
    library = loaded.library
    assert library is not None
    rows = []
    for expert in loaded.experts:
        base = loaded.bases[expert.base]
        rows.append(
            {
                "name": expert.name,
                "task": expert.task.name,
                "head": expert.task.head,
                "base": expert.base,
                "rank": expert.lora.rank,
                "from_block": expert.lora.trunk_depth,
                "parameters": expert.parameters(),
                "share_of_base": expert.parameters() / base.parameters(),
                "bytes": library.bytes(expert.name),
                "routed": expert.name in loaded.classes,
            }
        )
    return rows


def add_expert(system: Path, folder: Path, *, name: str, task: Task, data: Path, seed: int = 0) -> None:
    """Add a PEFT adapter to a saved system, and fit the router anew.

    The head comes from the adapter's folder where it holds one, else it is trained on the task's rows with the
    adapter left as it is; a head that writes has nothing to be trained. The router is fitted on the rows that ``data``
    holds, and on the library's skills of the experts whose rows are not there.

    Args:
        system: a saved system.
        folder: what PEFT's ``save_pretrained`` wrote.
        name: of the new expert.
        task: what it answers.
        data: folder with ``TASK/train.jsonl`` of the new task, and of others if there are any.
        seed: of the head, the sample of rows, and the router.

    Raises:
        AdapterError: the adapter cannot be represented exactly, or is of another base.
        LibraryError: the name is taken.
        DataError: there are no rows of the task.
    """
    checked_name(name, kind="expert name")
    loaded = System.load(system)
    if name in loaded.names:
        raise LibraryError(f"the system has an expert {name!r} already; remove it first, or give another --name")
    if not has_split(data, task, "train"):
        raise DataError(
            f"{data} has no {task.name}/train.jsonl; the router learns from the new task's rows when to choose the "
            "new expert: give --data DIR with at least a few dozen"
        )
    base_name = task.base or loaded.router_base
    base = loaded.bases.get(base_name) or new_base(loaded, base_name)
    adapter = load_adapter(folder, base)
    train, held = _rows(task, data, seed=seed)
    alike = [e.head for e in loaded.experts if e.task.head == task.head and e.base == base_name]
    options = dict(alike[0].options) if alike else {}
    head = imported_head(task, base, adapter.head) if adapter.head else build_head(task, base.width, options)
    expert = _expert(name, task, base, adapter, head, train, held, seed=seed)
    rows: dict[str, Sequence[Record]] = {name: train}
    for other in loaded.experts:
        if has_split(data, other.task, "train"):
            rows[other.name] = _rows(other.task, data, seed=seed)[0]
    router = loaded.router
    grown = System(
        {**loaded.bases, base_name: base},
        [*loaded.experts, expert],
        None,
        router_base=loaded.router_base,
        info=loaded.info,
        library=loaded.library,
    )
    kind = "mlp" if router is None else kind_of(router)
    options = {} if router is None else router.state()[0]
    settings = {"layers": "trunk", **options, "kind": kind, "join_pairs": 0.5}
    skills, _ = fit_system_router(grown, settings, RouterRows(rows, {}), seed=seed)
    with changing(system) as changed:
        library = Library(changed / EXPERTS)
        library.add(expert, base, skill=skills.get(name), replace=True)
        grown.save_router(changed)


def new_base(loaded: System, name: str) -> Base:
    """Load a base that a system does not have yet, by the name of its settings.

    Raises:
        LibraryError: there are no settings of that name.
    """
    known = list_names("bases")
    if name not in known:
        raise LibraryError(
            f"the system has no base {name!r}, only {one_of(loaded.bases)}, and there are no settings of that name"
            f"{suggest(name, known)}; known are {one_of(known)}: correct the task's base"
        )
    spec = base_spec(compose(overrides=[f"base={name}"]).base)
    first = loaded.bases[loaded.router_base]
    return Base.load(spec, device=first.device, dtype=first.dtype)


def remove_expert(system: Path, name: str) -> None:
    """Remove an expert from a saved system; the router shares its probability out among the others.

    Raises:
        LibraryError: there is no such expert, it is the last, or the fusion of another task mixes it.
    """
    loaded = System.load(system)
    if name not in loaded.names:
        raise LibraryError(f"the system has no expert {name!r}; it has: {one_of(loaded.names)}")
    if len(loaded.names) == 1:
        raise LibraryError(f"{name!r} is the system's only expert; delete the folder {system} instead")
    rest = [expert for expert in loaded.experts if expert.name != name]
    fused = [expert.name for expert in rest if expert.fusion is not None and name in expert.fusion.sources]
    if fused:
        raise LibraryError(
            f"expert {name!r} is mixed by the fusion that answers task {one_of(map(repr, fused))}; "
            f"remove {one_of(map(repr, fused))} first, or train the system again without experts.fusion for it"
        )
    used = {expert.base for expert in rest} | {loaded.router_base}
    bases = {key: base for key, base in loaded.bases.items() if key in used}
    smaller = System(
        bases, rest, loaded.router, router_base=loaded.router_base, classes=loaded.classes, info=loaded.info
    )
    with changing(system) as changed:
        smaller.save_router(changed)
        shutil.rmtree(changed / EXPERTS / name)


@contextmanager
def changing(system: Path) -> Iterator[Path]:
    """Give a copy of a system's folder to change; it takes the folder's place when all went well."""
    with writing_folder(system) as temporary:
        shutil.copytree(system, temporary, dirs_exist_ok=True)
        yield temporary


def _rows(task: Task, data: Path, *, seed: int) -> tuple[list[Record], list[Record]]:
    """Draw rows to learn from and held-out rows, from the validation split where there is one."""
    records = read_split(task, data, "train")
    if has_split(data, task, "validation"):
        held = read_split(task, data, "validation", limit=ROUTER_ROWS)
        parts, _ = draw(records, {"train": min(len(records), ROUTER_ROWS)}, seed=seed, purpose="add")
        return parts["train"], held
    share = max(1, len(records) // 10)
    sizes = {"held": share, "train": min(len(records) - share, ROUTER_ROWS)}
    parts, _ = draw(records, sizes, seed=seed, purpose="add")
    return parts["train"], parts["held"]


def _expert(
    name: str,
    task: Task,
    base: Base,
    adapter: Adapter,
    head: Head,
    train: list[Record],
    held: list[Record],
    *,
    seed: int,
) -> Expert:
    """Join adapter and head; a head that did not come with the adapter is trained, where there is anything to train."""
    card = {"source": {"adapter": adapter.config.get("base_model_name_or_path")}}
    expert = Expert(name, task, base.spec.name, adapter.factors, head, adapter.lora, card)
    if adapter.head or not list(head.parameters()):
        return expert
    head.initialise(seeded(seed, name, "head"))
    plan = ExpertPlan(
        task=task, lora=dataclasses.replace(adapter.lora, dropout=0.0), learning_rate=0.0, weight_decay=0.0
    )
    with Progress("head", None) as progress:
        found = fit_experts(
            base,
            [plan],
            {task.name: train},
            {task.name: held},
            options=LoopOptions(seed=seed),
            log=lambda step, values: None,
            start=[expert],
            begin=lambda total: progress.advance,
        )
    return dataclasses.replace(found[0], name=name, factors=adapter.factors)


def imported_head(task: Task, base: Base, tensors: Mapping[str, Tensor]) -> Head:
    """Build a head from the one that a ``transformers`` task model was trained with beside the adapter.

    Raises:
        AdapterError: its tensors are not those of a known head for this kind of task.
    """
    found = dict(tensors)
    options: dict[str, Any] = {}
    own: dict[str, Tensor] = {}
    if task.head == "span":
        own = _take(found, "qa_outputs", "out")
    elif task.head == "tags":
        own = _take(found, "classifier", "out")
    elif "classifier.out_proj.weight" in found and base.config.model_type in DENSE_TANH:
        options = {"pooling": "cls", "dense": True}
        own = {**_take(found, "classifier.dense", "dense"), **_take(found, "classifier.out_proj", "out")}
    elif base.config.model_type == "bert":
        options = {"pooling": "cls", "dense": True}
        dense = base.model.get_submodule("pooler.dense")
        pooler = {f"dense.{leaf}": value.detach().clone() for leaf, value in dense.named_parameters()}
        own = {**pooler, **_take(found, "classifier", "out")}
    head = build_head(task, base.width, options)
    shapes = {key: tuple(value.shape) for key, value in head.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in own.items()}
    if found or shapes != given:
        listed = ", ".join(f"{key} {tuple(value.shape)}" for key, value in sorted(tensors.items()))
        needed = ", ".join(f"{key} {shape}" for key, shape in shapes.items())
        raise AdapterError(
            f"the adapter's head ({listed}) does not fit task {task.name!r} over a {base.config.model_type} base: a "
            f"{task.head} head with labels {', '.join(task.labels) or '-'} needs {needed}; correct the task, or take "
            "the head out of the adapter's folder and it is trained anew on --data"
        )
    head.load_state_dict(own)
    return head.eval()


def _take(tensors: dict[str, Tensor], prefix: str, name: str) -> dict[str, Tensor]:
    """Take the weight and bias under a prefix out of ``tensors``, under another name."""
    found = {leaf: tensors.pop(f"{prefix}.{leaf}", None) for leaf in ("weight", "bias")}
    return {f"{name}.{leaf}": value for leaf, value in found.items() if value is not None}
