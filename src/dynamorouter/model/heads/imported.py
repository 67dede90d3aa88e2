"""Heads of adapters that were trained elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dynamorouter.errors import AdapterError
from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.base import Head, build_head
from dynamorouter.tasks.task import Task

DENSE_TANH = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Architectures whose classifier is a dense layer, tanh and an output layer over the first token."""


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
