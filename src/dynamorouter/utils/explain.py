"""Turns what pydantic finds wrong with settings into lines that a user can act on."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from dynamorouter.errors import ConfigError, one_of, suggest
from dynamorouter.utils.options import Options, own_names

Tree = dict[str, Any]
"""Nested plain values, as composed and not yet checked."""
T = TypeVar("T", bound=Options)


@dataclass(frozen=True)
class Inside:
    """What plain mappings of a branch hold, as metadata where a higher room knows it and the branch does not.

    Attributes:
        models: the settings in a field that is declared as a mapping, by the field's name.
    """

    models: Mapping[str, type[Options]]


@dataclass(frozen=True, slots=True)
class Branch:
    """What a part of the tree holds.

    Attributes:
        model: its keys.
        named: whether it holds any names, with the keys of ``model`` below each.
        inside: models of fields that ``model`` declares as plain mappings.
    """

    model: type[Options]
    named: bool = False
    inside: Mapping[str, type[Options]] | None = None

    def below(self, key: str) -> Branch | None:
        """Return the branch at ``key``, or ``None`` where the value is a leaf or the key is unknown."""
        if self.named:
            return Branch(self.model, inside=self.inside)
        key = self.model.aliases().get(key, key)
        if self.inside and key in self.inside:
            return Branch(self.inside[key])
        info = self.model.model_fields.get(key)
        return None if info is None else _branch_in(info.annotation)


def _branch_in(annotation: Any, inside: Mapping[str, type[Options]] | None = None) -> Branch | None:
    """Return the branch that an annotation stands for, if any."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and origin is None:
        return Branch(annotation, inside=inside) if issubclass(annotation, Options) else None
    if origin is typing.Annotated:
        marks = [mark.models for mark in arguments[1:] if isinstance(mark, Inside)]
        return _branch_in(arguments[0], marks[0] if marks else inside)
    if origin in (typing.Union, types.UnionType):
        return next((branch for one in arguments if (branch := _branch_in(one)) is not None), None)
    if origin is dict:
        entry = _branch_in(arguments[1])
        return None if entry is None else Branch(entry.model, named=True, inside=entry.inside)
    return None


def own_path(path: Sequence[str], root: Branch) -> list[str]:
    """Return the path of a key by the own names of the settings on its way."""
    branch: Branch | None = root
    parts = []
    for part in path:
        name = part if branch is None or branch.named else branch.model.aliases().get(part, part)
        parts.append(name)
        branch = None if branch is None else branch.below(name)
    return parts


def own_tree(tree: Mapping[str, Any], branch: Branch, prefix: str = "") -> tuple[Tree, list[str]]:
    """Return a tree by the own names of its settings, and what is wrong: settings that are given twice."""
    values, clashes = (dict(tree), []) if branch.named else own_names(tree, branch.model)
    mistakes = [f"{prefix.removesuffix('.') or 'settings'}: {clash}" for clash in clashes]
    for key, value in values.items():
        below = branch.below(str(key))
        if below is not None and isinstance(value, dict):
            values[key], mistakes_below = own_tree(value, below, f"{prefix}{key}.")
            mistakes += mistakes_below
    return values, mistakes


def checked(model: type[T], values: Mapping[str, Any], *, what: str) -> T:
    """Return settings from plain values.

    Args:
        model: their class.
        values: as a file, a command line or a caller gave them.
        what: whose settings they are, for the message, such as ``"task 'sst2'"``.

    Raises:
        ConfigError: something is unknown, missing, of the wrong type or out of range; the message names every mistake.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        lines = explain(error, values, root=Branch(model))
        listed = "".join(f"\n- {line}" for line in lines) if len(lines) > 1 else f" {lines[0]}"
        count = f" has {len(lines)} mistakes" if len(lines) > 1 else ""
        raise ConfigError(f"{what}{count}:{listed}") from None


def changed(options: T, changes: Mapping[str, Any], *, what: str) -> T:
    """Return settings with some of them changed, checked as `checked` does it.

    Args:
        options: the settings.
        changes: values by name or alias.
        what: whose settings they are, for the message.

    Raises:
        ConfigError: a change is unknown, given twice, of the wrong type or out of range.
    """
    renamed, clashes = own_names(changes, type(options))
    if clashes:
        raise ConfigError(f"{what}: {'; '.join(clashes)}")
    return checked(type(options), {**options.model_dump(), **renamed}, what=what)


def explain(error: ValidationError, tree: Mapping[str, Any], *, root: Branch, below: tuple[str, ...] = ()) -> list[str]:
    """Return one line per wrong key: its dotted path, the value, what is allowed, the nearest name.

    Args:
        error: what pydantic found.
        tree: the whole tree.
        root: what the tree may hold.
        below: path of the part of the tree that was validated.
    """
    reasons: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    for item in error.errors():
        path = _path((*below, *item["loc"]), tree, root)
        if item["type"] == "extra_forbidden":
            reason = f"unknown key{_nearest_key(path, tree, root)}"
        elif item["type"] == "missing":
            reason = "missing, and it has no default"
        else:
            reason = item["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
            if item["type"] == "string_type" and isinstance(item["input"], bool | int | float):
                reason += " (quote numbers and words like 'no' in YAML)"
            if item["type"] != "value_error":
                values[path] = item["input"]
        reasons.setdefault(path, [])
        if reason not in reasons[path]:
            reasons[path].append(reason)
    lines = []
    for path, alternatives in reasons.items():
        got = f"got {_short(values[path])}; " if path in values else ""
        lines.append(f"{path}{': ' if path else ''}{got}{' or '.join(alternatives)}")
    return lines


def known_keys(tree: object, branch: Branch, prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every key there is, aliases included, below the names that ``tree`` holds."""
    branches = tree if isinstance(tree, dict) else {}
    for key in branches if branch.named else (*branch.model.model_fields, *branch.model.aliases()):
        yield f"{prefix}{key}"
        below = branch.below(key)
        if below is not None:
            yield from known_keys(branches.get(key), below, f"{prefix}{key}.")


def _nearest_key(path: str, tree: Mapping[str, Any], root: Branch) -> str:
    """Return a suggestion: a neighbour that is spelled alike, the same key elsewhere, or any path alike."""
    keys = list(known_keys(tree, root))
    parent, _, leaf = path.rpartition(".")
    siblings = {key.rpartition(".")[2]: key for key in keys if key.rpartition(".")[0] == parent}
    near = suggest(leaf, siblings)
    if near:
        return near if not parent else near.replace("mean '", f"mean '{parent}.")
    elsewhere = [key for key in keys if key.rpartition(".")[2] == leaf and not key.startswith("task.")]
    if elsewhere:
        return f" (did you mean {' or '.join(repr(key) for key in elsewhere[:3])}?)"
    return suggest(path, keys) or (f"; allowed: {one_of(siblings)}" if siblings else "")


def _path(location: tuple[int | str, ...], tree: Any, root: Branch) -> str:
    """Return the dotted path of an error, without pydantic's names for the members of a union."""
    parts: list[str] = []
    here: Any = tree
    branch: Branch | None = root
    for part in location:
        if part in here if isinstance(here, Mapping) else isinstance(here, list | tuple) and part in range(len(here)):
            here = here[part]
        elif branch is not None and not branch.named and part in branch.model.model_fields:
            here = None  # a setting that is missing, or a default that does not go with the rest
        else:
            continue
        parts.append(str(part))
        branch = None if branch is None else branch.below(str(part))
    return ".".join(parts)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
