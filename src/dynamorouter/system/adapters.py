"""A folder of adapters joins a system: the task of each is found, and the router is fitted once for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from dynamorouter.config.files import list_names
from dynamorouter.config.tasks import find_task
from dynamorouter.data.native import has_split, read_split
from dynamorouter.data.sources import sources
from dynamorouter.errors import AdapterError, DataError, one_of, suggest
from dynamorouter.model.heads.label_order import named_outputs
from dynamorouter.model.lora.adapter_config import CONFIG, read_config
from dynamorouter.system.importing import adapter_folder
from dynamorouter.system.joining import AddedExpert, add_expert
from dynamorouter.system.opened import OpenSystem, undone_on_failure
from dynamorouter.system.routes import MAX_LOSS, RouterFit, fit_router
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Columns, Task
from dynamorouter.utils.progress import SILENT, Progress

LOOKED_AT = 200
"""Rows that tell which column is the label."""
SPLITS = ("train", "validation", "test")
Rows = Mapping[str, Iterable[Any]]


def import_adapters(
    system: OpenSystem,
    folder: str | Path,
    *,
    data: str | Path | Rows,
    tasks: Mapping[str, Task | str | Path] | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    max_loss: float = MAX_LOSS,
    progress: Progress = SILENT,
) -> tuple[list[AddedExpert], RouterFit]:
    """Import the adapters of a folder and fit the router once; all of them join, or none.

    Args:
        system: that they join.
        folder: of adapters' folders, or one adapter or its hub id; experts are called as their folders are.
        data: a folder with ``NAME/train.jsonl`` and the like (or ``TASK/...``), or rows by the adapter's name.
        tasks: by the adapter's name: a task, the name of one, or a file. Where none is given it is ``NAME.yaml`` or
            ``NAME/task.yaml`` beside the rows, the known task of that name, or, of a classifier whose labels are known,
            made of them and of the rows' columns.
        labels: by the adapter's name: the names of its head's outputs, in their order.
        seed: of weights and draws.
        max_loss: largest share of an old expert's kept rows that may lose their route.
        progress: told how far it is.

    Returns:
        The experts, and how the router came out.

    Raises:
        AdapterError: an adapter cannot be used, or its task cannot be told.
        DataError: there are no rows of an adapter's task, or one cannot be used.
        RouterError: an old expert would lose its routes.
    """
    folders = find_adapters(folder)
    tasks, labels = tasks or {}, labels or {}
    unknown = next((name for name in (*tasks, *labels) if name not in folders), None)
    if unknown is not None:
        raise AdapterError(f"{folder} has no adapter {unknown!r}{suggest(unknown, folders)}; it has: {one_of(folders)}")
    task_of = {name: _task(name, path, data, tasks.get(name), labels.get(name)) for name, path in folders.items()}
    added = []
    with undone_on_failure(system):
        for name, task in task_of.items():
            rows, held_out = task_rows(name, task, data)
            added.append(
                add_expert(
                    system,
                    name,
                    task=task,
                    rows=rows,
                    held_out=held_out,
                    adapter=folders[name],
                    labels=labels.get(name),
                    seed=seed,
                    progress=progress,
                )
            )
        fit = fit_router(system, given_rows(system, data), seed=seed, max_loss=max_loss, progress=progress)
    return added, fit


def find_adapters(folder: str | Path) -> dict[str, Path]:
    """Return the adapters below a folder by name, or the one that it is.

    Raises:
        AdapterError: there is none.
    """
    path = adapter_folder(folder)
    if (path / CONFIG).is_file():
        return {Path(folder).name: path}
    below = sorted(item for item in path.iterdir() if item.is_dir() and item.name[0] != ".") if path.is_dir() else []
    with_config = {item.name: item for item in below if (item / CONFIG).is_file() or list(item.glob(f"*/{CONFIG}"))}
    if not with_config:
        raise AdapterError(
            f"{folder} holds no adapter: neither it nor a folder below it has an {CONFIG}; give a folder of folders "
            "that PEFT's save_pretrained wrote, or one of them"
        )
    return with_config


def given_rows(system: OpenSystem, data: str | Path | Rows) -> dict[str, list[Any]]:
    """Return the rows that there are of each expert of a system, to fit its router on."""
    if isinstance(data, Mapping):
        return {name: list(rows) for name, rows in data.items()}
    rows = {}
    for expert in system.experts:
        train, _ = task_rows(expert.name, expert.task, data, needed=False)
        if train:
            rows[expert.name] = train
    return rows


def task_rows(
    name: str, task: Task, data: str | Path | Rows, *, needed: bool = True
) -> tuple[list[Any], list[Record] | None]:
    """Return rows of an adapter's task, and its validation rows where there are any."""
    if isinstance(data, Mapping):
        if name not in data:
            raise DataError(f"there are no rows of {name!r}; data has rows of: {one_of(data)}")
        return list(data[name]), None
    folder = Path(data)
    for located in (task, task.model_copy(update={"sources": {"local": {"folder": name}}})):
        if has_split(folder, located, "train"):
            held = read_split(located, folder, "validation") if has_split(folder, located, "validation") else None
            return list(read_split(located, folder, "train")), held
    if not needed:
        return [], None
    raise DataError(
        f"{folder} has no {task.name}/train.jsonl; the router learns from a task's rows when to choose its expert, and "
        "the expert is scored on them: give --data DIR with at least a few dozen"
    )


def _task(
    name: str, folder: Path, data: str | Path | Rows, task: Task | str | Path | None, labels: Sequence[str] | None
) -> Task:
    """Return the task of an adapter.

    Raises:
        AdapterError: it cannot be told.
    """
    if isinstance(task, Task):
        return task
    if task is not None:
        return find_task(str(task))
    if not isinstance(data, Mapping):
        for path in (Path(data) / f"{name}.yaml", Path(data) / name / "task.yaml"):
            if path.is_file():
                return find_task(str(path)).model_copy(update={"name": name})
    if name in list_names("tasks"):
        return find_task(name)
    config, values = read_config(_inner(folder))
    kind = config.task_type
    names = list(labels or named_outputs(_inner(folder), values))
    rows = list(islice(_native(name, data), LOOKED_AT))
    columns = _columns(rows, names) if kind == "SEQ_CLS" and names else None
    if columns is None:
        why = (
            f"its task_type is {kind!r}, and only that of a classifier (SEQ_CLS) can be told"
            if kind != "SEQ_CLS"
            else "its folder names no labels (id2label in config.json)"
            if not names
            else f"no column of its rows holds the labels {', '.join(names)} beside one text or two"
        )
        raise AdapterError(
            f"the task of adapter {name!r} is not known: {why}; name it with --task {name}=TASK, a known task "
            f"({one_of(list_names('tasks'))}) or a task's YAML file (tasks={{{name!r}: ...}}), or its labels with "
            f"--labels {name}=A,B"
        )
    return Task(name=name, head="classification", columns=columns, labels=tuple(names), sources={"local": {}})


def _inner(folder: Path) -> Path:
    return folder if (folder / CONFIG).is_file() else next(folder.glob(f"*/{CONFIG}")).parent


def _native(name: str, data: str | Path | Rows) -> Iterator[Mapping[str, Any]]:
    """Yield an adapter's rows in whatever columns they have."""
    if isinstance(data, Mapping):
        yield from (row for row in data.get(name, ()) if isinstance(row, Mapping))
        return
    nothing = Task(
        name=name, head="classification", columns=Columns(text="text", target="label"), labels=("a", "b")
    )  # any task of this name: the source looks for its folder
    options = {"root": str(data)}
    if (Path(data) / name).is_dir():
        local = sources.get("local")()
        for split in local.splits(nothing, options)[:1]:
            yield from (row for _, row in local.rows(nothing, split, options, skip_bad=None))


def _columns(rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Columns | None:
    """Return the columns of a classifier's rows: that of the labels and one text or two; ``None`` where not sure."""
    if not rows:
        return None
    targets = [key for key in rows[0] if all(str(row.get(key)).strip() in labels for row in rows)]
    texts = [
        key
        for key in rows[0]
        if key not in targets and key not in ("id", "idx") and all(isinstance(row.get(key), str) for row in rows)
    ]
    if len(targets) != 1 or not 1 <= len(texts) <= 2:
        return None
    return Columns(text=texts[0], pair=texts[1] if len(texts) == 2 else None, target=targets[0])
