"""Tasks by name or file, and tasks that include another and change some of its keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from dynamorouter.config.checks import check_names, listed
from dynamorouter.config.files import CONF, group_file, list_names, read_tree
from dynamorouter.config.schema import ROOT, TASK, RunTask
from dynamorouter.errors import ConfigError, one_of, suggest
from dynamorouter.tasks.task import Task
from dynamorouter.utils.explain import Tree, explain, own_tree

INCLUDE = "include"
"""Key of a task's YAML file that names the task whose keys it starts from: a name, or a path beside the file."""
DATA_OF = {"local": "folder", "builtin": "module"}
"""The option by which a source finds a task's rows, which else go by the task's name; a variant keeps them."""


def find_task(name: str, *, search_path: Sequence[str | Path] = ()) -> Task:
    """Return one task.

    Args:
        name: the name of a task, or the path of its YAML file.
        search_path: folders laid out like ``conf/`` that names are looked up in too.

    Raises:
        ConfigError: there is no such task or file, or it is wrong; the message names every mistake.
    """
    folders = [CONF, *(Path(folder) for folder in search_path)]
    path = task_file(name, folders, beside=Path()).resolve()
    tree = with_included(read_tree(path), chain=(path,), beside=path.parent, folders=folders)
    tree.setdefault("name", path.stem)
    try:
        task: Task = TypeAdapter(RunTask).validate_python(tree)
    except ValidationError as error:
        below = ("task", str(tree["name"]))
        mistakes = explain(error, {"task": {tree["name"]: tree}}, root=ROOT, below=below)
        raise ConfigError(listed(mistakes)) from None
    check_names([task])
    return task


def task_file(name: str, folders: Sequence[Path], *, beside: Path) -> Path:
    """Return the file of a task: in the last of the folders that has one, or at a path.

    Raises:
        ConfigError: there is no such task.
    """
    if name.endswith((".yaml", ".yml", ".json")):
        return beside / name
    file = group_file("task", name, folders)
    if file is None:
        tasks = list_names("tasks", folders)
        raise ConfigError(
            f"unknown task {name!r}{suggest(name, tasks)}; allowed: {one_of(tasks)}, or the path of a task's YAML file"
        )
    return file


def with_included(tree: Tree, *, chain: tuple[Path, ...], beside: Path, folders: Sequence[Path]) -> Tree:
    """Return a task's keys over those of the task that it includes, if it does: mappings merge, all else replaces.

    Args:
        tree: the task's own keys.
        chain: files of the tasks that led here, the last of them the task's own; where it has none, its name.
        beside: the folder where paths begin.
        folders: that names are looked up in.

    Raises:
        ConfigError: there is no task of that name, its file is wrong, or tasks include each other.
    """
    name = chain[-1].stem
    changes, clashes = own_tree(tree, TASK, f"task.{name}.")
    if clashes:
        raise ConfigError(listed(clashes))
    if INCLUDE not in changes:
        return changes
    included = changes.pop(INCLUDE)
    if not isinstance(included, str):
        raise ConfigError(f"task.{name}.include: got {included!r}; name one task, or the path of its YAML file")
    try:
        path = task_file(included, folders, beside=beside).resolve()
        if path in chain:
            raise ConfigError("tasks include each other; take one of these includes away")
        values = read_tree(path)
    except ConfigError as error:
        trail = " -> ".join([*(file.stem for file in chain), included])
        raise ConfigError(f"task.{chain[0].stem}.include ({trail}): {error}") from None
    values = with_included(values, chain=(*chain, path), beside=path.parent, folders=folders)
    rows_name = values.pop("name", path.stem)
    sources = values.get("sources")
    for source, option in DATA_OF.items():
        if isinstance(sources, dict) and isinstance(sources.get(source), dict):
            sources[source].setdefault(option, rows_name)
    return _over(values, changes)


def _over(values: Tree, changes: Tree) -> Tree:
    """Return changes laid over values: mappings merge, all else replaces."""
    merged = dict(values)
    for key, change in changes.items():
        below = values.get(key)
        merged[key] = _over(below, change) if isinstance(below, dict) and isinstance(change, dict) else change
    return merged
