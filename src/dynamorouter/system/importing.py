"""An adapter that was trained elsewhere becomes an expert: with its own head, or with one that is trained on rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dynamorouter.errors import AdapterError
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.config import HUB_ID
from dynamorouter.model.heads.base import build_head
from dynamorouter.model.heads.imported import brings_head, imported_head
from dynamorouter.model.lora.adapter_files import source_of
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.lora.peft import load_adapter
from dynamorouter.system.opened import OpenSystem
from dynamorouter.system.train import head_options, split_rows
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.kinds import head_kind
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task
from dynamorouter.training.config import ExpertConfig
from dynamorouter.training.experts import fit_experts
from dynamorouter.training.learner import ExpertPlan
from dynamorouter.training.loop import LoopOptions
from dynamorouter.utils.progress import SILENT, Progress
from dynamorouter.utils.seeding import seeded

HEAD_ROWS = 1000
"""Most rows that a head is trained on."""
FILES = ["adapter_*", "*/adapter_*", "config.json", "card.json", "head.safetensors"]
"""What is fetched of an adapter on the hub."""


@dataclass(frozen=True, slots=True)
class Imported:
    """An expert made of an adapter.

    Attributes:
        expert: the expert.
        train: rows that its head was trained on; none where the head came with it.
        held: rows to score it on.
        notes: what a user should know, a sentence each.
    """

    expert: Expert
    train: list[Record]
    held: list[Record]
    notes: tuple[str, ...]


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
    if brought:
        head = imported_head(task, base, read, labels=labels)
    else:
        head = build_head(task, base.width, head_options(system, task, base))
    card = {"source": {**source_of(read.folder), "task_type": read.config.get("task_type")}}
    expert = Expert(name, task, base.spec.name, read.factors, head, read.lora, card)
    if brought or not list(head.parameters()):
        return Imported(expert, [], list(records if held is None else held), read.notes)
    if not records:
        raise AdapterError(
            f"the adapter {str(adapter)!r} has no head for task {task.name!r}; give rows of it, and one is trained"
        )
    train, kept, notes = split_rows(records, held, task, HEAD_ROWS, seed=seed)
    head.initialise(seeded(seed, name, "head"))
    shape = {**read.lora.model_dump(), "dropout": 0.0}
    config = ExpertConfig(**shape, head_learning_rate=1e-3, weight_decay=0.0, batch_rows=32)
    plan = ExpertPlan(task, config.model_copy(update={"learning_rate": 0.0}))  # the head alone: no run may ask for it
    (trained,) = fit_experts(
        base,
        [plan],
        {task.name: train},
        {task.name: kept},
        options=LoopOptions(seed=seed),
        start=[expert],
        progress=progress,
    )
    return Imported(dataclasses.replace(trained, name=name, factors=read.factors), train, kept, (*read.notes, *notes))


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


def check_label_order(task: Task, answered: Sequence[tuple[Record, Answer | None]], *, where: str) -> None:
    """Make sure that no other order of the labels would score far better, as where the adapter had another one.

    Args:
        task: with labels, or nothing is checked.
        answered: rows and what the expert answers to them.
        where: the adapter, for the message.

    Raises:
        AdapterError: another order would.
    """
    if head_kind(task.head).answer_kind != "classification" or not answered:
        return
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros((len(task.labels), len(task.labels)))
    for record, answer in answered:
        if answer is not None and record.target in task.labels and answer.value in task.labels:
            counts[task.labels.index(str(answer.value)), task.labels.index(str(record.target))] += 1
    answers, truths = linear_sum_assignment(counts, maximize=True)
    right, best, rows = float(np.trace(counts)), float(counts[answers, truths].sum()), len(answered)
    if best - right <= max(0.1 * rows, 2.0 * rows**0.5):
        return
    meant = [f"{task.labels[a]!r} means {task.labels[t]!r}" for a, t in zip(answers, truths, strict=True) if a != t]
    raise AdapterError(
        f"the labels of {where} are in another order than was taken for granted: accuracy on {rows} rows "
        f"is {right / rows:.3f}, but {best / rows:.3f} where what it calls {', '.join(meant)}; name its labels in the "
        "order of its outputs with --labels (labels=[...]), or correct the rows"
    )
