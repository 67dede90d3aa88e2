"""What can be wrong with the bases of a run, found before any work: no such folder, a wrong head, no chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dynamorouter.config.schema import Config
from dynamorouter.errors import ConfigError, one_of
from dynamorouter.model.base.config import BaseSpec
from dynamorouter.model.heads.base import EncoderHead, heads
from dynamorouter.model.text.prompts import prompt_form
from dynamorouter.tasks.task import Task

TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")


def check_bases(config: Config) -> None:
    """Look at the folders of all bases in use; what a hub holds is seen when it is fetched.

    Raises:
        ConfigError: a folder is missing or holds no model, a task's head does not go with its base, or a prompt needs a
            chat template and the tokenizer has none; all of them are named.
    """
    mistakes = []
    for spec in config.bases_in_use():
        tasks = [task for task in config.task.values() if config.base_of(task).name == spec.name]
        mistakes += _mistakes(spec, tasks)
    if mistakes:
        raise ConfigError("; ".join(mistakes))


def _mistakes(spec: BaseSpec, tasks: Sequence[Task]) -> list[str]:
    """Return what is wrong with one base and the tasks on it."""
    location = spec.locate()
    folder = Path(location).expanduser()
    if not folder.is_dir():
        if folder.is_file() or not location.startswith(("/", ".", "~")):
            return []  # a single file, or a hub's id
        return [
            f"base {spec.name!r}: there is no folder {location!r}; give a folder with config.json, model.safetensors "
            "and a tokenizer, or the id of a hub model"
        ]
    if not (folder / "config.json").is_file():
        files = one_of(path.name for path in folder.iterdir()) or "nothing"
        return [
            f"base {spec.name!r}: {location!r} holds no model (no config.json; it has {files}); name a model's folder"
        ]
    mistakes = _head_mistakes(spec, folder, tasks)
    chatting = [f"task {task.name!r}" for task in tasks if prompt_form(task, spec) == "chat"]
    if (spec.prompt == "chat" or chatting) and not _has_template(folder):
        who = one_of(chatting) or "its router"
        mistakes.append(
            f"base {spec.name!r}: prompt 'chat' of {who} needs a chat template, and the tokenizer in {location!r} has "
            "none; choose another prompt (base.prompt=plain), or a base with a template"
        )
    return mistakes


def _head_mistakes(spec: BaseSpec, folder: Path, tasks: Sequence[Task]) -> list[str]:
    """Return which tasks have a head that does not go with the kind of their base."""
    from transformers import AutoConfig

    from dynamorouter.model.base.kinds import kind_of_config

    try:
        kind = kind_of_config(AutoConfig.from_pretrained(folder)) if spec.kind == "auto" else spec.kind
    except (OSError, ValueError, KeyError) as error:
        return [f"base {spec.name!r}: {str(folder / 'config.json')!r} cannot be read: {error}"]
    mistakes = []
    for task in tasks:
        head = heads.get(task.head)
        needed = getattr(head, "base_kind", None)
        reads = kind != "seq2seq" if issubclass(head, EncoderHead) else needed in (None, kind)
        if not reads:
            mistakes.append(
                f"task {task.name!r}: a {task.head} head needs a base of kind {needed or 'encoder or decoder'}, but "
                f"base {spec.name!r} is of kind {kind}; name another base (task.{task.name}.base=NAME), or another head"
            )
    return mistakes


def _has_template(folder: Path) -> bool:
    """Tell whether a tokenizer's folder holds a chat template."""
    if any((folder / name).is_file() for name in TEMPLATE_FILES) or (folder / "additional_chat_templates").is_dir():
        return True
    try:
        return bool(json.loads((folder / "tokenizer_config.json").read_bytes()).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False
