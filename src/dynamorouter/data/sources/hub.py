"""Data sets of the Hugging Face hub, or a local folder in the hub's own format."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dynamorouter.data.sources import SPLITS, Options, Row, Source, source_split, sources
from dynamorouter.errors import ConfigError, DataError, MissingExtraError
from dynamorouter.tasks.task import Task
from dynamorouter.utils.jsonl import SkipCount


@sources.register("hub")
class HubSource(Source):
    """Loads through the ``datasets`` library.

    Options: ``path`` (``owner/name`` on the hub, or a folder), ``name`` (the configuration), ``revision``,
    ``cache_dir``. A folder may hold data files or what ``save_to_disk`` wrote. Integer labels become the names
    that the data set itself declares for them.
    """

    def splits(self, task: Task, options: Options) -> list[str]:
        """Return our names of the splits that the data set has."""
        path = _path(task, options)
        if _saved(path):
            available = set(_call(task, path, "load_from_disk", path))
        else:
            extra = {key: options[key] for key in ("revision", "cache_dir") if options.get(key)}
            available = set(_call(task, path, "get_dataset_split_names", path, options.get("name"), **extra))
        return [split for split in SPLITS if source_split(split, options) in available]

    def rows(self, task: Task, split: str, options: Options, *, skip_bad: SkipCount | None) -> Iterator[Row]:
        """Yield the rows of a split, numbered from 1, with integer labels turned into names.

        Raises:
            MissingExtraError: the ``datasets`` library is not installed.
            DataError: the data set cannot be loaded.
        """
        path, hub_split = _path(task, options), source_split(split, options)
        if _saved(path):
            saved = _call(task, path, "load_from_disk", path)
            if hub_split not in saved:
                raise DataError(f"task {task.name!r}: {path} has no split {hub_split!r}, only {', '.join(saved)}")
            data = saved[hub_split]
        else:
            extra = {key: options[key] for key in ("revision", "cache_dir") if options.get(key)}
            data = _call(task, path, "load_dataset", path, options.get("name"), split=hub_split, **extra)
        yield from enumerate(named_rows(data), start=1)

    def fingerprint(self, task: Task, options: Options) -> str:
        """Return path, configuration and revision; a folder is told by its files' sizes and times."""
        path = _path(task, options)
        parts = [path, str(options.get("name")), str(options.get("revision"))]
        if Path(path).is_dir():
            for file in sorted(item for item in Path(path).rglob("*") if item.is_file()):
                status = file.stat()
                parts.append(f"{file.relative_to(path)}:{status.st_size}:{status.st_mtime_ns}")
        return "|".join(parts)


def named_rows(data: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a ``datasets.Dataset`` with integer labels as the names that it declares for them."""
    features = data.features or {}  # a stream may not know them
    names = {column: label_names for column, feature in features.items() if (label_names := _names(feature))}
    for row in data.with_format(None):
        yield {key: _label(value, names[key]) if key in names else value for key, value in row.items()}


def _path(task: Task, options: Options) -> str:
    if not options.get("path"):
        raise ConfigError(f"source 'hub' of task {task.name!r} needs the data set; set `sources.hub.path: OWNER/NAME`")
    return str(options["path"])


def _saved(path: str) -> bool:
    return (Path(path) / "dataset_dict.json").is_file()


def _call(task: Task, path: str, function: str, *args: Any, **kwargs: Any) -> Any:
    """Call a function of the ``datasets`` library and say what to do where it fails."""
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise MissingExtraError(
            "data=hub needs the `datasets` library; install it with `pip install dynamorouter[hub]`, "
            "or use data=local or data=builtin"
        ) from error
    # The library raises its own kinds over these three: missing data sets, no network, wrong names.
    try:
        return getattr(library, function)(*args, **kwargs)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"task {task.name!r}: cannot load {path!r} from the hub: {error}; check the name and the network, "
            "or use data=local data.root=FOLDER"
        ) from error


def _names(feature: Any) -> list[str] | None:
    """Return the label names of a feature or of a list's items, if it declares any."""
    inner = getattr(feature, "feature", feature)
    names = getattr(inner, "names", None)
    return list(names) if names else None


def _label(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_label(item, names) for item in value]
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return value
