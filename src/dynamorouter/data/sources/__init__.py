"""Where rows come from: the registry of sources, and what all of them share.

A source is one class with ``splits``, ``load`` and ``fingerprint``. Options that every source understands:
``splits`` (our split name -> the source's, or null to hide it), ``rename`` (the source's column -> the task's),
``label_names`` (names of integer labels, in order) and ``label_map`` (the source's label -> the task's).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dynamorouter.errors import ConfigError, DataError, one_of
from dynamorouter.registry import Registry
from dynamorouter.tasks.chat import COLUMNS as CHAT_COLUMNS
from dynamorouter.tasks.chat import conversation
from dynamorouter.tasks.kinds import head_kind
from dynamorouter.tasks.labels import match_label, whole_number
from dynamorouter.tasks.task import Task
from dynamorouter.utils.jsonl import SkipCount, bad_row

Options = Mapping[str, Any]
Row = tuple[int, dict[str, Any]]
"""The number of a row in its file, from 1, and its columns."""

SPLITS = ("train", "validation", "test")
"""The splits that preparation asks for."""


class Source(ABC):
    """Gives a task's rows in its native columns."""

    @abstractmethod
    def splits(self, task: Task, options: Options) -> list[str]:
        """Return which of ``SPLITS`` there are."""

    @abstractmethod
    def rows(self, task: Task, split: str, options: Options, *, skip_bad: SkipCount | None) -> Iterator[Row]:
        """Yield the rows of a split as they are, before renaming and label mapping."""

    def remarks(self, task: Task, split: str, options: Options) -> dict[str, int]:
        """Return what else is to be counted and said of a split's rows, by name."""
        return {}

    @abstractmethod
    def fingerprint(self, task: Task, options: Options) -> str:
        """Return a string that changes when the data may have changed."""


sources: Registry[type[Source]] = Registry(
    "source", "dynamorouter.data.sources", group="sources", contract="dynamorouter.data.sources:Source"
)


def source_options(task: Task, source: str, overrides: Options | None = None) -> dict[str, Any]:
    """Return the task's options for a source, with the run's own on top.

    Raises:
        DataError: the task does not name the source.
    """
    sources.get(source)
    if source not in task.sources:
        raise DataError(
            f"task {task.name!r} has no source {source!r}, only {one_of(task.sources)}; "
            f"choose one of these, or add `sources.{source}` to the task"
        )
    return {**task.sources[source], **(overrides or {})}


def available_splits(task: Task, source: str, options: Options) -> list[str]:
    """Return the splits of a task that a source has and its options do not hide.

    Raises:
        DataError: the source cannot be reached.
    """
    hidden = {split for split, source_name in (options.get("splits") or {}).items() if source_name is None}
    return [split for split in sources.get(source)().splits(task, options) if split not in hidden]


def load(task: Task, split: str, source: str, options: Options, *, skip_bad: SkipCount | None = None) -> Iterator[Row]:
    """Yield a split's rows with the task's own column names and label names.

    Args:
        task: whose rows.
        split: ``train``, ``validation`` or ``test``.
        source: name of a registered source.
        options: what ``source_options`` returned.
        skip_bad: where given, bad rows are counted in it and left out.

    Raises:
        DataError: the split is not there, a row is broken, or columns are missing; rows are named by number.
    """
    for number, row in sources.get(source)().rows(task, split, options, skip_bad=skip_bad):
        if missing := missing_columns(task, row, options):
            bad_row(
                f"task {task.name!r}, split {split!r}, row {number}: column {', '.join(missing)} missing; "
                f"found {', '.join(map(str, row))}; needed {', '.join(task.columns.needed())}; "
                f"name the columns in the task's `columns`, or in `rename` of its source {source!r}",
                skip_bad,
            )
            continue
        yield number, in_task_columns(task, row, options)


def missing_columns(task: Task, row: Mapping[str, Any], options: Options) -> list[str]:
    """Return which columns of a task a source's row lacks, by the task's names.

    A text to be written may come without an input, and it and its text as one conversation.
    """
    rename = options.get("rename") or {}
    names = {rename.get(key, key) for key in row}
    columns, kind = task.columns, head_kind(task.head)
    optional = {columns.pair} if kind.pair == "input" else set()
    if _conversation(task, row) is not None:
        optional |= {columns.text, columns.target}
    return [column for column in columns.needed() if column not in names | optional]


def in_task_columns(task: Task, row: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """Return a source's row, which lacks no column, under the task's names of columns and of labels."""
    rename = options.get("rename") or {}
    renamed = {rename.get(key, key): _plain(value) for key, value in row.items()}
    columns, turns = task.columns, _conversation(task, renamed)
    if turns is not None:
        renamed[columns.text] = renamed[columns.target] = turns
    if columns.pair is not None and head_kind(task.head).pair == "input":
        renamed.setdefault(columns.pair, None)
    renamed[columns.target] = _named(renamed[columns.target], task, options)
    return renamed


def _conversation(task: Task, row: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """Return the conversation that stands for the text and the answer of a row that has neither."""
    if not head_kind(task.head).is_generative or {task.columns.text, task.columns.target} & row.keys():
        return None
    return conversation({column: _plain(row.get(column)) for column in CHAT_COLUMNS})


def _plain(value: Any) -> Any:
    """Return arrays and tuples, as tables in memory hold them, as lists, and their numbers as Python's own."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    to_list = getattr(value, "tolist", None)
    if callable(to_list):
        value = to_list()
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def source_split(split: str, options: Options) -> str:
    """Return the source's own name of a split."""
    return str((options.get("splits") or {}).get(split) or split)


def _named(value: Any, task: Task, options: Options) -> Any:
    """Turn integer labels into names, and the source's names into the task's; ``None`` where there is no label."""
    if isinstance(value, (list, tuple)):
        return [_named(item, task, options) for item in value]
    if isinstance(value, Mapping):
        return value  # answers of spans, not labels
    names: Sequence[str] | None = options.get("label_names")
    number = whole_number(value) if names or task.labels else None
    if number is not None and number < 0 and match_label(value, task.labels) is None:
        return None  # as data sets of the hub mark rows without a label
    if names and number is not None and number >= 0:
        if number >= len(names):
            raise ConfigError(f"label {number} has no name: `label_names` lists {len(names)} ({', '.join(names)})")
        value = names[number]
    renamed: Mapping[Any, Any] = options.get("label_map") or {}
    key = match_label(value, [str(key) for key in renamed]) if renamed else None
    return value if key is None else next(label for name, label in renamed.items() if str(name) == key)
