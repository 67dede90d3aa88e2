"""Heads of adapters that were trained elsewhere, or that lie in an expert's own folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dynamorouter.errors import AdapterError
from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.base import Head, build_head, heads
from dynamorouter.model.heads.label_order import model_config, output_order
from dynamorouter.model.heads.task_model import check_head
from dynamorouter.model.lora.adapter_files import check_tensors
from dynamorouter.model.lora.adapter_origin import HEAD, read_card
from dynamorouter.model.lora.adapter_tensors import POOLER
from dynamorouter.model.lora.peft import Adapter
from dynamorouter.tasks.task import Task
from dynamorouter.utils.files import read_tensors


def brings_head(adapter: Adapter) -> bool:
    """Tell whether a head was trained with an adapter, so that ``imported_head`` can build it."""
    changes_head = any(not layer.startswith(POOLER) for layer in adapter.head_factors)
    return bool(adapter.head) or changes_head or "head" in read_card(adapter.folder)


def imported_head(task: Task, base: Base, adapter: Adapter, *, labels: Sequence[str] | None = None) -> Head:
    """Build a head from the one that was trained with an adapter, its outputs in the order of the task's labels.

    Args:
        task: what it is to answer.
        base: the adapter's base model.
        adapter: what ``load_adapter`` returned.
        labels: the name of each of the head's outputs, in their order; by default what the folder says, or the config
            of its base.

    Raises:
        AdapterError: its tensors are not those of a known head for this kind of task, nothing says which output is
            which label, or it would not compute what it was trained to.
    """
    card = read_card(adapter.folder)
    holds_head = "head" in card and (adapter.folder / HEAD).is_file()
    options, state = _own_state(task, adapter, card) if holds_head else _task_model_state(task, base, adapter)
    head = build_head(task, base.width, options)
    _check_shapes(head, state, task, base)
    _check_problem(adapter)
    kind = type(head)
    if kind.output_layer is not None:
        names = [name for name in state if name.startswith(f"{kind.output_layer}.")]
        outputs = len(state[names[0]])
        order = output_order(task, base, adapter, outputs, labels)
        state = {name: value[order] if name in names else value for name, value in state.items()}
    elif labels is not None:
        raise AdapterError(f"labels are {', '.join(labels)}, but a {task.head} head has none; leave --labels out")
    head.load_state_dict(state)
    head.eval()
    if not holds_head:
        check_head(head.to(base.device), base, where=str(adapter.folder))
    return head


def _check_problem(adapter: Adapter) -> None:
    """Refuse a head whose outputs are no labels of which one is right."""
    problem = model_config(adapter.folder).get("problem_type")
    if problem in ("regression", "multi_label_classification"):
        raise AdapterError(
            f"the head in {adapter.folder} was trained with problem_type={problem!r} (its config.json); only heads "
            "that choose one label can be used: train it with problem_type='single_label_classification'"
        )


def _own_state(task: Task, adapter: Adapter, card: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return options and weights of the head that lies in an expert's own folder."""
    written_for = card.get("task", {}).get("head")
    if written_for != task.head:
        raise AdapterError(
            f"the expert in {adapter.folder} has a {written_for} head, but task {task.name!r} has a {task.head} head; "
            "name the expert's own task"
        )
    tensors = read_tensors(adapter.folder / HEAD)
    check_tensors(tensors, adapter.folder)
    return dict(card["head"]), tensors


def _task_model_state(task: Task, base: Base, adapter: Adapter) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return options and weights of a head by its tensors in a task model, changes to its layers put in."""
    tensors = _merged(adapter, base)
    unused = dict(tensors)
    options, state = heads.get(task.head).import_state(unused, base)
    if unused or not state:
        raise AdapterError(
            f"the adapter's head ({_listed(tensors)}) does not fit task {task.name!r}: a {task.head} head over a "
            f"{base.config.model_type} base cannot be built of it; correct the task, or take the head out of the "
            "adapter's folder and it is trained anew on --data"
        )
    return options, state


def _merged(adapter: Adapter, base: Base) -> dict[str, Tensor]:
    """Return the head's tensors with the low-rank changes to its layers added, such as that of a pooler.

    Raises:
        AdapterError: a layer's own weights are neither in the adapter nor in the base.
    """
    tensors = {name: value.float() for name, value in adapter.head.items()}
    for layer, change in adapter.head_factors.items():
        names = [f"{layer}.weight", f"{layer}.bias"]
        for name in names:
            if name not in tensors and name in base.weights and name not in base.missing:
                tensors[name] = base.weights[name].detach().float().cpu().clone()
        weight = tensors.get(names[0])
        if weight is None or weight.shape != (change.b.shape[0], change.a.shape[1]):
            raise AdapterError(
                f"the adapter in {adapter.folder} changes {layer!r} of its head, whose own weights are neither in its "
                f"file nor in base {base.spec.name!r}; train it with {layer.partition('.')[0]!r} in modules_to_save"
            )
        tensors[names[0]] = weight + change.scaling * (change.b @ change.a)
    return tensors


def _check_shapes(head: Head, state: dict[str, Tensor], task: Task, base: Base) -> None:
    shapes = {key: tuple(value.shape) for key, value in head.state_dict().items()}
    if shapes != {key: tuple(value.shape) for key, value in state.items()}:
        raise AdapterError(
            f"the adapter's head ({_listed(state)}) does not fit task {task.name!r} over a {base.config.model_type} "
            f"base: a {task.head} head with labels {', '.join(task.labels) or '-'} needs "
            f"{', '.join(f'{key} {shape}' for key, shape in shapes.items())}; correct the task, or take the head out "
            "of the adapter's folder and it is trained anew on --data"
        )


def _listed(tensors: dict[str, Tensor]) -> str:
    return ", ".join(f"{key} {tuple(value.shape)}" for key, value in sorted(tensors.items()))
