"""The library: a folder of experts, each a PEFT adapter folder with ``head.safetensors`` and ``card.json``.

``fusion.safetensors`` is there for an expert that answers through a mixture with others, and
``skill.safetensors`` beside them holds what a router read of some of the expert's own rows, so that a router can be
fitted again when an expert joins, without the data of the others.

Letters: N rows, F features of a row.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynamorouter.errors import LibraryError, one_of, suggest
from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.base import Head, build_head
from dynamorouter.model.heads.task_model import PEFT_TASKS, task_form
from dynamorouter.model.lora.adapter_origin import CARD, HEAD
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.lora.fusion import Fusion, load_layers
from dynamorouter.model.lora.peft import read_adapter, save_adapter
from dynamorouter.routing.pooling import FeatureSample
from dynamorouter.tasks.task import Task
from dynamorouter.utils.explain import checked
from dynamorouter.utils.files import (
    checked_name,
    read_form,
    read_metadata,
    read_tensors,
    write_json,
    write_tensors,
    writing_folder,
)

SKILL, FUSION = "skill.safetensors", "fusion.safetensors"
FORMAT = 1


class Library:
    """The folder of a system's experts.

    Args:
        folder: where the experts' folders are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """List the experts that are there, sorted."""
        if not self.folder.is_dir():
            return []
        return sorted(path.parent.name for path in self.folder.glob(f"*/{CARD}") if path.parent.name[0] != ".")

    def add(self, expert: Expert, base: Base, *, skill: FeatureSample | None = None, replace: bool = False) -> Path:
        """Write an expert's folder, whole or not at all.

        Raises:
            LibraryError: the name is no file name, or is taken.
        """
        folder = self.folder / checked_name(expert.name, kind="expert name")
        if folder.exists() and not replace:
            raise LibraryError(
                f"there is an expert {expert.name!r} in {self.folder} already; remove it first, or give another --name"
            )
        with writing_folder(folder) as temporary:
            came_as_task_model = expert.card.get("source", {}).get("task_type") in PEFT_TASKS
            form = task_form(expert.head, base) if came_as_task_model else None
            save_adapter(temporary, expert.factors, expert.lora, base, form=form)
            write_tensors(temporary / HEAD, expert.head.state_dict())
            if expert.fusion is not None:
                write_tensors(temporary / FUSION, expert.fusion.state())
            if skill is not None:
                _write_skill(temporary / SKILL, skill)
            write_json(temporary / CARD, _card(expert, base))
        return folder

    def remove(self, name: str) -> None:
        """Delete an expert's folder.

        Raises:
            LibraryError: there is none of that name.
        """
        shutil.rmtree(self._existing(name))

    def card(self, name: str) -> dict[str, Any]:
        """Return an expert's card.

        Raises:
            LibraryError: there is no such expert, or a later version wrote it.
        """
        return read_form(self._existing(name) / CARD, format=FORMAT, entries={"task": dict, "base": dict, "head": dict})

    def load(self, name: str, base: Base) -> Expert:
        """Read an expert for its base.

        Raises:
            LibraryError: a file is missing or damaged, or the base's weights are not those it was trained on.
        """
        folder, card = self._existing(name), self.card(name)
        digest = card["base"]["digest"]
        if digest != base.digest:
            raise LibraryError(
                f"expert {name!r} was trained on base {card['base']['name']!r} with digest {digest}, but the base at "
                f"{base.spec.locate()!r} has {base.digest}; give the base it was trained on"
            )
        adapter = read_adapter(folder, base)
        task = checked(Task, card["task"], what=f"the task in {str(folder / CARD)!r}")
        head = build_head(task, base.width, card["head"])
        load_head(head, read_tensors(folder / HEAD), where=str(folder / HEAD))
        facts = {key: value for key, value in card.items() if key not in _DERIVED}
        fusion = _fusion(folder, task, base, card["fusion"]) if "fusion" in card else None
        lora, targets = adapter.lora, card.get("lora", {}).get("targets")
        if targets is not None:  # as they were asked for; the adapter lists every layer
            lora = lora.model_copy(update={"targets": targets if isinstance(targets, str) else tuple(targets)})
        return Expert(name, task, base.spec.name, adapter.factors, head.eval(), lora, facts, fusion)

    def skill(self, name: str) -> FeatureSample | None:
        """Return what a router read of the expert's rows, if it was kept."""
        path = self._existing(name) / SKILL
        if not path.is_file():
            return None
        states = {int(key.removeprefix("layer.")): value for key, value in read_tensors(path).items()}
        return FeatureSample(states, read_metadata(path)["pooling"])

    def keep_skill(self, name: str, skill: FeatureSample) -> None:
        """Write what a router read of an expert's rows beside it, and leave everything else of it as it is."""
        _write_skill(self._existing(name) / SKILL, skill)

    def bytes(self, name: str) -> int:
        """Count the bytes of an expert's files."""
        return sum(path.stat().st_size for path in self._existing(name).iterdir())

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def _existing(self, name: str) -> Path:
        folder = self.folder / checked_name(name, kind="expert name")
        if not (folder / CARD).is_file():
            names = self.names()
            raise LibraryError(
                f"there is no expert {name!r} in {self.folder}{suggest(name, names)}; there are: {one_of(names) or '-'}"
            )
        return folder


def _write_skill(path: Path, skill: FeatureSample) -> None:
    states = {f"layer.{layer}": value for layer, value in skill.states.items()}
    write_tensors(path, states, metadata={"pooling": skill.pooling})


_DERIVED = {"format", "name", "task", "base", "head", "lora", "parameters", "fusion"}


def _card(expert: Expert, base: Base) -> dict[str, Any]:
    fusion = expert.fusion
    mixed = {} if fusion is None else {"fusion": {"sources": list(fusion.sources), "head": dict(fusion.head.options)}}
    return {
        "format": FORMAT,
        "name": expert.name,
        "task": expert.task.model_dump(mode="json"),
        "base": {"name": expert.base, "digest": base.digest},
        "head": dict(expert.head.options),
        "lora": expert.lora.model_dump(mode="json"),
        "parameters": expert.parameters(),
        **mixed,
        **{key: value for key, value in expert.card.items() if key not in _DERIVED},
    }


def _fusion(folder: Path, task: Task, base: Base, card: Mapping[str, Any]) -> Fusion:
    """Read the fusion of an expert's folder; its sources are looked up by the system."""
    path, tensors = folder / FUSION, read_tensors(folder / FUSION)
    head_tensors = {key.removeprefix("head/"): value for key, value in tensors.items() if key.startswith("head/")}
    layer_tensors = {key: value for key, value in tensors.items() if not key.startswith("head/")}
    head = build_head(task, base.width, card["head"])
    load_head(head, head_tensors, where=str(path))
    layers = load_layers(layer_tensors, experts=len(card["sources"]), where=str(path))
    return Fusion(tuple(card["sources"]), layers, head.eval())


def export_expert(expert: Expert, base: Base, folder: Path) -> None:
    """Write an expert as PEFT writes a trained task model: its head in ``modules_to_save``, labels in ``config.json``.

    Args:
        expert: of a library, or in memory.
        base: its base.
        folder: where to; an expert that generates is written as PEFT writes a language model's adapter.

    Raises:
        LibraryError: no task model of ``transformers`` computes what the head does, or the folder is there already.
    """
    if folder.exists():
        raise LibraryError(f"there is something at {folder} already; give a folder that is not there yet")
    form = task_form(expert.head, base)
    if form is None and not expert.is_generative:
        settings = ", ".join(f"{key}={value}" for key, value in expert.head.options.items())
        raise LibraryError(
            f"no task model of transformers computes what the {expert.head.kind} head of expert {expert.name!r} does "
            f"({settings or 'no options'}) over a {base.config.model_type} base; its folder in the system opens with "
            "PEFT over AutoModel, and its head is head.safetensors there"
        )
    with writing_folder(folder) as temporary:
        save_adapter(temporary, expert.factors, expert.lora, base, form=form)
        if expert.task.labels:
            config = copy.deepcopy(base.config)
            config.id2label = dict(enumerate(expert.task.labels))
            config.label2id = {label: index for index, label in enumerate(expert.task.labels)}
            config.save_pretrained(temporary)


def load_head(head: Head, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Load a head's weights, all of them and nothing else.

    Raises:
        LibraryError: keys are missing or unmatched, or shapes differ.
    """
    needed_shapes = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    file_shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if needed_shapes != file_shapes:
        raise LibraryError(
            f"{where} holds {file_shapes}, but the head needs {needed_shapes}; the file is damaged, "
            "or belongs to another task"
        )
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise LibraryError(f"{where} holds NaN or Inf in {', '.join(broken)}; restore it, or train the expert again")
    head.load_state_dict(dict(tensors))
