"""An adapter that was trained elsewhere becomes an expert: with its own head, or with one that is trained on rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dynamorouter.errors import AdapterError
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.config import HUB_ID
from dynamorouter.model.heads.base import Head, build_head
from dynamorouter.model.heads.imported import brings_head, imported_head
from dynamorouter.model.heads.label_check import check_labels
from dynamorouter.model.heads.label_order import UnnamedOutputsError
from dynamorouter.model.lora.adapter_files import source_of
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.lora.peft import Adapter, load_adapter
from dynamorouter.system.opened import OpenSystem
from dynamorouter.system.train import head_options, split_rows
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task
from dynamorouter.training.config import ExpertConfig
from dynamorouter.training.experts import fit_experts
from dynamorouter.training.learner import ExpertPlan
from dynamorouter.training.loop import LoopOptions
from dynamorouter.utils.progress import SILENT, Progress
from dynamorouter.utils.seeding import seeded

NamedBy = Literal["nothing", "folder", "user"]
HEAD_ROWS = 1000
"""Most rows that a head is trained on."""
FILES = ["adapter_*", "*/adapter_*", "config.json", "card.json", "head.safetensors"]
"""What is fetched of an adapter on the hub."""


@dataclass(frozen=True, slots=True)
class NewExpert:
    """An expert that is about to join a system.

    Attributes:
        expert: the expert.
        train: rows that it, or its head, learned from.
        held: rows to score it on.
        notes: what a user should know, a sentence each.
        answered: rows and what was answered to each, where cross-validation scores it.
    """

    expert: Expert
    train: list[Record]
    held: list[Record]
    notes: tuple[str, ...] = ()
    answered: list[tuple[Record, Answer | None]] | None = None


@dataclass(frozen=True, slots=True)
class Imported(NewExpert):
    """An expert made of an adapter.

    Attributes:
        named_by: what names the outputs of the head that came with it; ``nothing`` where none came.
        unnamed: why they are not named, where the order of the task's labels was taken until the rows tell.
    """

    named_by: NamedBy = "nothing"
    unnamed: UnnamedOutputsError | None = None


def import_expert(
    system: OpenSystem,
    name: str,
    task: Task,
    base: Base,
    adapter: str | Path,
    records: Sequence[Record],
    held: Sequence[Record] | None,
    *,
    labels: Sequence[str] | None,
    seed: int,
    progress: Progress = SILENT,
) -> Imported:
    """Make an expert of an adapter over a base; nothing of the adapter is trained.

    Args:
        system: that it is to join.
        name: of the expert.
        task: what it answers.
        base: the adapter's base.
        adapter: a folder that PEFT wrote, or its hub id.
        records: rows of the task, for a head that did not come with the adapter.
        held: rows to score it on; ``None`` for some of ``records``, or for all of them where none is learned from.
        labels: names of the outputs of the adapter's head, in their order, where its folder does not say.
        seed: of the head, and of draws.
        progress: told how far it is.

    Raises:
        AdapterError: the adapter cannot be represented exactly, is of another base, or has a head of another task.
    """
    read = load_adapter(adapter_folder(adapter), base)
    brought = brings_head(read)
    head, unnamed = (
        _brought_head(task, base, read, labels)
        if brought
        else (build_head(task, base.width, head_options(system, task, base)), None)
    )
    card = {"source": {**source_of(read.folder), "task_type": read.config.get("task_type")}}
    expert = Expert(name, task, base.spec.name, read.factors, head, read.lora, card)
    if brought or not list(head.parameters()):
        scored = list(records if held is None else held)
        named_by: NamedBy = "nothing" if not brought else "folder" if labels is None else "user"
        return Imported(expert, [], scored, read.notes, named_by=named_by, unnamed=unnamed)
    if not records:
        raise AdapterError(
            f"the adapter {str(adapter)!r} has no head for task {task.name!r}; give rows of it, and one is trained"
        )
    train, validation, notes = split_rows(records, held, task, HEAD_ROWS, seed=seed)
    expert = _with_trained_head(expert, base, train, validation, seed=seed, progress=progress)
    return Imported(expert, train, validation, (*read.notes, *notes))


def _with_trained_head(
    expert: Expert, base: Base, train: list[Record], validation: list[Record], *, seed: int, progress: Progress
) -> Expert:
    """Train an expert's head from the beginning, and leave its factors as they are."""
    expert.head.initialise(seeded(seed, expert.name, "head"))
    shape = {**expert.lora.model_dump(), "dropout": 0.0}
    config = ExpertConfig(**shape, head_learning_rate=1e-3, weight_decay=0.0, batch_rows=32)
    task = expert.task
    plan = ExpertPlan(task, config.model_copy(update={"learning_rate": 0.0}))  # the head alone: no run may ask for it
    (trained,) = fit_experts(
        base,
        [plan],
        {task.name: train},
        {task.name: validation},
        options=LoopOptions(seed=seed),
        start=[expert],
        progress=progress,
    )
    return dataclasses.replace(trained, name=expert.name, factors=expert.factors)


def _brought_head(
    task: Task, base: Base, read: Adapter, labels: Sequence[str] | None
) -> tuple[Head, UnnamedOutputsError | None]:
    """Return an adapter's own head; in the task's order where nothing names its outputs, and why that is in doubt."""
    try:
        return imported_head(task, base, read, labels=labels), None
    except UnnamedOutputsError as error:
        return imported_head(task, base, read, labels=task.labels), error


def adapter_folder(place: str | Path) -> Path:
    """Return the folder of an adapter, fetched from the hub where it is a hub id.

    Raises:
        AdapterError: there is no such folder, and nothing of that id on the hub or among what was fetched before.
    """
    path = Path(place).expanduser()
    if path.exists() or not HUB_ID.fullmatch(str(place)):
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(place), allow_patterns=FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise AdapterError(
            f"there is no folder {str(place)!r}, and the hub gives no adapter of that id: {error}; check the name and "
            "the network (HF_HUB_OFFLINE must not be 1), or give a folder that PEFT's save_pretrained wrote"
        ) from error


def check_label_order(
    task: Task, answered: Sequence[tuple[Record, Answer | None]], imported: Imported, *, where: str
) -> tuple[str, ...]:
    """Make sure that no other order of the labels would score far better, as where the adapter had another one.

    Args:
        task: the task.
        answered: rows and what the expert answers to them.
        imported: the expert.
        where: the adapter, for the message.

    Returns:
        What a user should know: that another order scores better, where the user gave this one or the gain is slight,
        or that the task's own order was taken because the rows confirm it.

    Raises:
        AdapterError: another order would, or nothing named the outputs and the rows do not tell.
    """
    if imported.named_by == "nothing":
        return ()
    check = check_labels(task, answered)
    if check is None or check.is_confirmed:
        if imported.unnamed is not None and check is None:
            raise imported.unnamed
        taken = (
            f"the labels of {where} were taken in the task's order, which {check.items if check else 0} rows confirm"
        )
        return (taken,) if imported.unnamed is not None else ()
    if imported.unnamed is not None:
        better = f"; {check}" if check.is_wrong else ""
        raise AdapterError(f"{imported.unnamed}; the rows do not tell{better}") from imported.unnamed
    warning = f"check the order of the labels of {where}: {check}"
    if check.is_wrong and imported.named_by == "folder":
        raise AdapterError(
            f"the labels of {where} are in another order than its folder says: {check}; name its labels in the order "
            "of its outputs with --labels (labels=[...]), or correct the rows"
        )
    return (warning,) if check.is_doubtful else ()
