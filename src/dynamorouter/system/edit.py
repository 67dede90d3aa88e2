"""What is done to a saved system: scoring it on files, adding an adapter trained elsewhere, removing an expert."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dynamorouter.config.compose import compose
from dynamorouter.config.files import list_names
from dynamorouter.data.native import has_split, read_split
from dynamorouter.data.split import draw
from dynamorouter.errors import DataError, LibraryError, one_of, suggest
from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.base import Head, build_head, heads
from dynamorouter.model.heads.imported import brings_head, imported_head
from dynamorouter.model.lora.adapter_files import source_of
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.lora.peft import Adapter, load_adapter
from dynamorouter.routing.serialization import kind_of
from dynamorouter.system.library import Library
from dynamorouter.system.router import RouterRows, fit_system_router
from dynamorouter.system.system import EXPERTS, System
from dynamorouter.tasks.kinds import head_kind
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task
from dynamorouter.training.config import ExpertConfig
from dynamorouter.training.experts import fit_experts
from dynamorouter.training.learner import ExpertPlan
from dynamorouter.training.loop import LoopOptions
from dynamorouter.utils.files import checked_name, writing_folder
from dynamorouter.utils.progress import shown_progress
from dynamorouter.utils.seeding import seeded

ROUTER_ROWS = 1000
"""Most rows per task that the router is fitted on again when an expert joins."""


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


def add_expert(
    system: Path,
    folder: Path,
    *,
    name: str,
    task: Task,
    data: Path,
    labels: Sequence[str] | None = None,
    seed: int = 0,
) -> Adapter:
    """Add a PEFT adapter to a saved system, and fit the router anew.

    The head comes from the adapter's folder where it holds one, else it is trained on the task's rows with the
    adapter left as it is; a generative head has nothing to be trained. The router is fitted on the rows that ``data``
    holds, and on the library's skills of the experts whose rows are not there.

    Args:
        system: a saved system.
        folder: what PEFT's ``save_pretrained`` wrote.
        name: of the new expert.
        task: what it answers.
        data: folder with ``TASK/train.jsonl`` of the new task, and of others if there are any.
        labels: the name of each output of the adapter's head, in their order, where its folder does not say.
        seed: of the head, the sample of rows, and the router.

    Returns:
        The adapter as it was read.

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
    train, validation = _rows(task, data, seed=seed)
    if brings_head(adapter):
        head = imported_head(task, base, adapter, labels=labels)
    else:
        head = build_head(task, base.width, _head_options(loaded, task, base))
    expert = _expert(name, task, base, adapter, head, train, validation, seed=seed)
    rows: dict[str, Sequence[Record]] = {name: train}
    for expert_before in loaded.experts:
        if has_split(data, expert_before.task, "train"):
            rows[expert_before.name] = _rows(expert_before.task, data, seed=seed)[0]
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
    return adapter


def _head_options(loaded: System, task: Task, base: Base) -> dict[str, Any]:
    """Return the options of a new head: those of one that was trained here, else as the base's settings say."""
    alike = [e for e in loaded.experts if (e.task.head, e.base) == (task.head, base.spec.name)]
    trained = [e.head.options for e in alike if "source" not in e.card]
    return dict(trained[0]) if trained else heads.get(task.head).base_options(base.spec)


def new_base(loaded: System, name: str) -> Base:
    """Load a base that a system does not have yet, by the name of its settings.

    Raises:
        LibraryError: there are no settings of that name.
    """
    available = list_names("bases")
    if name not in available:
        raise LibraryError(
            f"the system has no base {name!r}, only {one_of(loaded.bases)}, and there are no settings of that name"
            f"{suggest(name, available)}; known are {one_of(available)}: correct the task's base"
        )
    spec = compose(overrides=[f"base={name}"]).base
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
    records, kind = read_split(task, data, "train"), head_kind(task.head)
    if has_split(data, task, "validation"):
        validation = read_split(task, data, "validation", limit=ROUTER_ROWS)
        parts, _ = draw(records, {"train": min(len(records), ROUTER_ROWS)}, kind=kind, seed=seed, purpose="add")
        return parts["train"], validation
    share = max(1, len(records) // 10)
    sizes = {"held": share, "train": min(len(records) - share, ROUTER_ROWS)}
    parts, _ = draw(records, sizes, kind=kind, seed=seed, purpose="add")
    return parts["train"], parts["held"]


def _expert(
    name: str,
    task: Task,
    base: Base,
    adapter: Adapter,
    head: Head,
    train: list[Record],
    validation: list[Record],
    *,
    seed: int,
) -> Expert:
    """Join adapter and head; a head that did not come with the adapter is trained, where there is anything to train."""
    card = {"source": {**source_of(adapter.folder), "task_type": adapter.config.get("task_type")}}
    expert = Expert(name, task, base.spec.name, adapter.factors, head, adapter.lora, card)
    if brings_head(adapter) or not list(head.parameters()):
        return expert
    head.initialise(seeded(seed, name, "head"))
    shape = {**adapter.lora.model_dump(), "dropout": 0.0}
    config = ExpertConfig(**shape, head_learning_rate=1e-3, weight_decay=0.0, batch_rows=32)
    plan = ExpertPlan(task, config.model_copy(update={"learning_rate": 0.0}))  # the head alone: no run may ask for it
    with shown_progress() as progress:
        trained = fit_experts(
            base,
            [plan],
            {task.name: train},
            {task.name: validation},
            options=LoopOptions(seed=seed),
            start=[expert],
            progress=progress,
        )
    return dataclasses.replace(trained[0], name=name, factors=adapter.factors)
