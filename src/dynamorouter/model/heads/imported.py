"""Heads of adapters that were trained elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dynamorouter.errors import AdapterError
from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.base import Head, build_head, heads
from dynamorouter.tasks.task import Task


def imported_head(task: Task, base: Base, tensors: Mapping[str, Tensor]) -> Head:
    """Build a head from the one that a ``transformers`` task model was trained with beside the adapter.

    Raises:
        AdapterError: its tensors are not those of a known head for this kind of task.
    """
    unused = dict(tensors)
    options, state = heads.get(task.head).import_state(unused, base)
    head = build_head(task, base.width, options)
    shapes = {key: tuple(value.shape) for key, value in head.state_dict().items()}
    if unused or shapes != {key: tuple(value.shape) for key, value in state.items()}:
        listed = ", ".join(f"{key} {tuple(value.shape)}" for key, value in sorted(tensors.items()))
        needed = ", ".join(f"{key} {shape}" for key, shape in shapes.items())
        raise AdapterError(
            f"the adapter's head ({listed}) does not fit task {task.name!r} over a {base.config.model_type} base: a "
            f"{task.head} head with labels {', '.join(task.labels) or '-'} needs {needed}; correct the task, or take "
            "the head out of the adapter's folder and it is trained anew on --data"
        )
    head.load_state_dict(state)
    return head.eval()
