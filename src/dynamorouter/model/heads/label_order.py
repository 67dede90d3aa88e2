"""Which output of a head that came with an adapter is which label of a task.

Names are compared without case, spaces and signs, so that ``NOT_DUPLICATE`` is ``not_duplicate``; a few have others
that mean the same.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynamorouter.errors import AdapterError, DataError
from dynamorouter.model.base.base import Base
from dynamorouter.model.lora.adapter_origin import read_card
from dynamorouter.model.lora.peft import Adapter
from dynamorouter.tasks.task import Task
from dynamorouter.utils.files import read_json

SAME = (
    ("negative", "neg"),
    ("positive", "pos"),
    ("entailment", "entail", "entails", "entailed"),
    ("contradiction", "contradict", "contradicts", "contradictory"),
    ("duplicate", "isduplicate", "paraphrase", "equivalent", "same"),
    ("notduplicate", "nonduplicate", "noduplicate", "notparaphrase", "notequivalent", "different"),
    ("scitech", "sciencetechnology", "scienceandtechnology", "technology"),
    *((f"{begin}per", f"{begin}person") for begin in "bi"),
    *((f"{begin}loc", f"{begin}location") for begin in "bi"),
    *((f"{begin}org", f"{begin}organization", f"{begin}organisation") for begin in "bi"),
    *((f"{begin}misc", f"{begin}miscellaneous") for begin in "bi"),
)
"""Names that mean the same label."""


class UnnamedOutputsError(AdapterError):
    """Nothing says which output of an adapter's head is which label."""


_UNNAMED = re.compile(r"((label|class|output)[\s_-]?)?\d+", re.IGNORECASE)


def output_order(task: Task, base: Base, adapter: Adapter, outputs: int, labels: Sequence[str] | None) -> list[int]:
    """Return the head's output for each of the task's labels, in their order.

    Args:
        task: whose labels they are.
        base: the base, whose config may name the outputs.
        adapter: the adapter, whose folder may name them.
        outputs: how many there are.
        labels: the name of each output, where the user says so.

    Raises:
        UnnamedOutputsError: nothing names the outputs.
        AdapterError: what names them has other labels than the task.
    """
    if labels is not None:
        return _checked_order(task, labels, outputs, source="labels (--labels)")
    for source, names in _certain_names(adapter.folder, adapter.config):
        if not _are_unnamed(names) or _order(task.labels, names) is not None:
            return _checked_order(task, names, outputs, source=source)
    for names in _names_of_base(adapter, base):
        order = _order(task.labels, names)
        if order is not None and len(names) == outputs:
            return order
    raise UnnamedOutputsError(
        f"the adapter's head has {outputs} outputs for task {task.name!r}, and nothing says which label each is: "
        f"neither {adapter.folder} nor its base's config has names under id2label; give the labels in the order of the "
        f"head's outputs, such as --labels {','.join(task.labels)} (labels=[...])"
    )


def _checked_order(task: Task, names: Sequence[str], outputs: int, *, source: str) -> list[int]:
    """Return the order that names give.

    Raises:
        AdapterError: they are not the task's labels, or not as many as the head has outputs.
    """
    if len(names) != outputs:
        raise AdapterError(
            f"{source} has {len(names)} labels ({', '.join(names)}), but the adapter's head has {outputs} outputs; "
            f"give one label for each output, in their order: --labels {','.join(task.labels)}"
        )
    order = _order(task.labels, names)
    if order is None:
        raise AdapterError(
            f"{source} has the labels {', '.join(names)}, but task {task.name!r} has {', '.join(task.labels)}; give "
            "the task's labels in the order of the head's outputs (--labels a,b,...), or correct the task"
        )
    return order


def _order(labels: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """Return the index of each label among the names, exactly or by what they mean; ``None`` where they differ."""
    for key in (str, _plain, _meaning):
        name_keys = [key(name) for name in names]
        label_keys = [key(label) for label in labels]
        if len(set(name_keys)) == len(name_keys) and sorted(name_keys) == sorted(label_keys):
            return [name_keys.index(label) for label in label_keys]
    return None


def _plain(name: str) -> str:
    """Return a name's letters and digits alone, in lower case."""
    return "".join(c for c in unicodedata.normalize("NFKC", name).casefold() if c.isalnum())


def _meaning(name: str) -> str:
    plain = _plain(name)
    return next((group[0] for group in SAME if plain in group), plain)


def _are_unnamed(names: Sequence[str]) -> bool:
    return all(_UNNAMED.fullmatch(name.strip()) for name in names)


def named_outputs(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Return what an adapter's folder calls its head's outputs, in their order; empty where they have numbers alone.

    Args:
        folder: where the adapter lies.
        config: its ``adapter_config.json``.
    """
    return next((names for _, names in _certain_names(folder, config) if not _are_unnamed(names)), [])


def _certain_names(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield the names that an adapter's folder gives its outputs, with their place."""
    card = read_card(folder)
    if isinstance(task := card.get("task"), dict) and isinstance(task.get("labels"), list) and task["labels"]:
        yield "its card.json", [str(label) for label in task["labels"]]
    for source, values in (("its adapter_config.json", config), ("its config.json", model_config(folder))):
        if names := _names(values):
            yield source, names


def _names_of_base(adapter: Adapter, base: Base) -> Iterator[list[str]]:
    """Yield the names that the configs of the adapter's base give to the outputs of its own head, if it has any."""
    named = adapter.config.get("base_model_name_or_path")
    for values in (
        model_config(Path(named)) if isinstance(named, str) else {},
        json.loads(base.config.to_json_string()),
    ):
        if names := _names(values):
            yield names


def model_config(folder: Path) -> Mapping[str, Any]:
    """Return the ``config.json`` of a folder; empty where there is none."""
    try:
        values = read_json(folder / "config.json")
    except DataError:
        return {}
    return values if isinstance(values, dict) else {}


def _names(values: Mapping[str, Any]) -> list[str]:
    """Return the names of outputs 0, 1, ... by ``id2label`` or ``label2id``; empty where not whole, or at odds."""
    by_id, by_label = values.get("id2label"), values.get("label2id")
    if isinstance(by_id, dict) and isinstance(by_label, dict):
        backwards = {str(name): str(index) for index, name in by_id.items()}
        if {str(label): str(index) for label, index in by_label.items()} != backwards:
            return []
    if isinstance(by_id, list):
        return [str(name) for name in by_id]
    if not isinstance(by_id, dict) and isinstance(by_label, dict):
        by_id = {str(index): label for label, index in by_label.items()}
    if not isinstance(by_id, dict):
        return []
    named = {str(index): str(name) for index, name in by_id.items()}
    names = [named.get(str(index)) for index in range(len(named))]
    return [] if None in names else [name for name in names if name is not None]
