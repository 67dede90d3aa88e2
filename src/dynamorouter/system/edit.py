"""What is done to a saved system: experts are trained, imported, listed or removed, and its router fitted.

Each opens the system, changes it in memory, and writes the changed one beside it; that takes the old one's place when
it can be opened again and answers.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dynamorouter.errors import DynamoRouterError, LibraryError, one_of
from dynamorouter.model.base.base import Base
from dynamorouter.routing.config import RouterConfig
from dynamorouter.system.adapters import given_rows, task_rows
from dynamorouter.system.joining import AddedExpert
from dynamorouter.system.library import Library
from dynamorouter.system.library import export_expert as export
from dynamorouter.system.routes import MAX_LOSS, RouterFit
from dynamorouter.system.system import EXPERTS, System
from dynamorouter.tasks.task import Task
from dynamorouter.training.config import ExpertConfig
from dynamorouter.utils.files import checked_name, writing_folder
from dynamorouter.utils.progress import SILENT, Progress

PROBE = "Is a changed system whole?"
"""What every expert of a changed system is asked before it takes the old one's place."""


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
    folder: Path | str,
    *,
    name: str,
    task: Task,
    data: Path,
    labels: Sequence[str] | None = None,
    seed: int = 0,
    max_loss: float = MAX_LOSS,
    progress: Progress = SILENT,
) -> tuple[AddedExpert, RouterFit]:
    """Add a PEFT adapter to a saved system, and let the router choose it.

    The head comes from the adapter's folder where it holds one, else it is trained on the task's rows with the
    adapter left as it is; a generative head has nothing to be trained. The router learns from the rows that ``data``
    holds, and from what the library keeps of the experts whose rows are not there.

    Args:
        system: a saved system.
        folder: what PEFT's ``save_pretrained`` wrote, or a hub id.
        name: of the new expert.
        task: what it answers.
        data: folder with ``TASK/train.jsonl`` of the new task, and of others if there are any.
        labels: names of the outputs of the adapter's head, in their order, where its folder does not say.
        seed: of the head, the sample of rows, and the router.
        max_loss: largest share of an old expert's kept rows that may lose their route.
        progress: told how far it is.

    Returns:
        The adapter as it was read.

    Raises:
        AdapterError: the adapter cannot be represented exactly, or is of another base.
        LibraryError: the name is taken, or the changed system cannot be opened.
        DataError: there are no rows of the task.
        RouterError: an old expert would lose its routes.
    """
    checked_name(name, kind="expert name")
    opened = System.load(system)
    if name in opened.names:
        raise LibraryError(f"the system has an expert {name!r} already; remove it first, or give another --name")
    rows, held_out = task_rows(name, task, data)
    added = opened.add_expert(
        name,
        task=task,
        rows=rows,
        held_out=held_out,
        adapter=folder,
        labels=labels,
        seed=seed,
        progress=progress,
    )
    fit = opened.fit_router(given_rows(opened, data), seed=seed, max_loss=max_loss, progress=progress)
    _write(system, opened, [name])
    return added, fit


def train_expert(
    system: Path,
    *,
    name: str,
    task: Task,
    data: Path,
    settings: ExpertConfig | None = None,
    seed: int = 0,
    max_loss: float = MAX_LOSS,
    progress: Progress = SILENT,
) -> tuple[AddedExpert, RouterFit]:
    """Train a further expert of a saved system on rows, and let the router choose it; the others stay as they are.

    Args:
        system: a saved system.
        name: of the new expert.
        task: what it learns.
        data: folder with ``TASK/train.jsonl``, ``validation.jsonl`` if there is one, and rows of other tasks if any.
        settings: of the training; by default as in recipes, and for longer where rows are few.
        seed: of weights and draws.
        max_loss: largest share of an old expert's kept rows that may lose their route.
        progress: told how far it is.

    Raises:
        LibraryError: the name is taken, or the changed system cannot be opened.
        DataError: there are no rows of the task, or too few.
        RouterError: an old expert would lose its routes.
    """
    opened = System.load(system)
    rows, held_out = task_rows(name, task, data)
    added = opened.add_expert(
        name, task=task, rows=rows, held_out=held_out, settings=settings, seed=seed, progress=progress
    )
    fit = opened.fit_router(given_rows(opened, data), seed=seed, max_loss=max_loss, progress=progress)
    _write(system, opened, [name])
    return added, fit


def import_adapters(
    system: Path,
    folder: Path | str,
    *,
    data: Path,
    tasks: Mapping[str, Task | str] | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    max_loss: float = MAX_LOSS,
    progress: Progress = SILENT,
) -> tuple[list[AddedExpert], RouterFit]:
    """Import the adapters of a folder into a saved system, and fit its router once (see ``System.import_adapters``)."""
    opened = System.load(system)
    added, fit = opened.import_adapters(
        folder, data=data, tasks=tasks, labels=labels, seed=seed, max_loss=max_loss, progress=progress
    )
    _write(system, opened, [expert.name for expert in added])
    return added, fit


def fit_router(
    system: Path,
    *,
    data: Path | None = None,
    settings: RouterConfig | None = None,
    seed: int = 0,
    max_loss: float = MAX_LOSS,
    progress: Progress = SILENT,
) -> RouterFit:
    """Fit the router of a saved system on what its library keeps, and on the rows that ``data`` holds.

    Raises:
        RouterError: an expert has neither rows nor kept features, or an old one would lose its routes.
        LibraryError: the changed system cannot be opened.
    """
    opened = System.load(system)
    rows = {} if data is None else given_rows(opened, data)
    fit = opened.fit_router(rows, settings=settings, seed=seed, max_loss=max_loss, progress=progress)
    _write(system, opened, [])
    return fit


def _write(system: Path, opened: System, new: Sequence[str]) -> None:
    """Write what was changed of an opened system: new experts, what its router has read, the router."""
    with changing(system, opened.bases) as changed:
        library = Library(changed / EXPERTS)
        for expert in opened.experts:
            skill = opened.skills.get(expert.name)
            if expert.name in new:
                library.add(expert, opened.bases[expert.base], skill=skill)
            elif skill is not None:
                library.keep_skill(expert.name, skill)
        opened.save_router(changed)


def export_expert(system: Path, name: str, folder: Path) -> None:
    """Write an expert of a saved system to a folder that PEFT opens over the task model of its head.

    Raises:
        LibraryError: there is no such expert, no task model computes what its head does, or the folder is there.
    """
    loaded = System.load(system)
    if name not in loaded.names:
        raise LibraryError(f"the system has no expert {name!r}; it has: {one_of(loaded.names)}")
    expert = loaded.experts[loaded.names.index(name)]
    export(expert, loaded.bases[expert.base], folder)


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
    with changing(system, bases) as changed:
        smaller.save_router(changed)
        shutil.rmtree(changed / EXPERTS / name)


@contextmanager
def changing(system: Path, bases: Mapping[str, Base]) -> Iterator[Path]:
    """Give a copy of a system's folder to change; it takes the folder's place when it can be opened and answers.

    Args:
        system: a saved system.
        bases: those of the changed system, loaded; what is mounted on them is displaced.

    Raises:
        LibraryError: the changed system cannot be opened, or an expert of it cannot answer; the folder stays as it was.
    """
    with writing_folder(system) as temporary:
        shutil.copytree(system, temporary, dirs_exist_ok=True)
        yield temporary
        try:
            _answer_once(System.load(temporary, bases=bases))
        except DynamoRouterError as error:
            message = str(error).replace(str(temporary), str(system))
            raise LibraryError(
                f"the changed system cannot be used: {message}; {system} stays as it was: please report this"
            ) from error


def _answer_once(system: System) -> None:
    """Let every expert answer one row.

    Raises:
        LibraryError: an answer is no number.
    """
    pairs = [expert.task.columns.pair is not None for expert in system.experts]
    answers = system.predict(
        [PROBE] * len(pairs),
        [PROBE if is_pair else None for is_pair in pairs],
        system.names,
        generation={"max_new_tokens": 1, "min_new_tokens": 0},
    )
    scores = {p.expert: p.answer.score for p in answers if p.answer is not None}
    broken = [name for name, score in scores.items() if score is not None and not math.isfinite(score)]
    if broken:
        raise LibraryError(f"expert {one_of(map(str, broken))} answers with scores that are no numbers")
    if system.router is not None:
        system.route([PROBE])
