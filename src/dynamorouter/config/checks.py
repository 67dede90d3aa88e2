"""Turns what is wrong with a tree of settings into lines that a user can act on."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from dynamorouter.config.schema import Config
from dynamorouter.errors import one_of, suggest
from dynamorouter.tasks.kinds import head_kind, head_kinds
from dynamorouter.utils.options import Options

GRADIENT_ROUTERS = ("complexity", "mlp")
"""Kinds of router that the joint phase can train; torch, which would tell, is not imported for a check."""
Tree = dict[str, Any]
"""Nested plain values, as composed and not yet checked."""


@dataclass(frozen=True, slots=True)
class Branch:
    """What a part of the tree holds: the keys of ``model``, or, if ``named``, any names with such keys below each."""

    model: type[Options]
    named: bool = False

    def below(self, key: str) -> Branch | None:
        """Return the branch at ``key``, or ``None`` where the value is a leaf or the key is unknown."""
        if self.named:
            return Branch(self.model)
        info = self.model.model_fields.get(key)
        return None if info is None else _branch_in(info.annotation)


ROOT = Branch(Config)


def _branch_in(annotation: Any) -> Branch | None:
    """Return the branch that an annotation stands for, if any."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and origin is None:
        return Branch(annotation) if issubclass(annotation, Options) else None
    if origin is typing.Annotated:
        return _branch_in(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return next((branch for one in arguments if (branch := _branch_in(one)) is not None), None)
    if origin is dict:
        inner = _branch_in(arguments[1])
        return None if inner is None else Branch(inner.model, named=True)
    return None


def explain(error: ValidationError, tree: Mapping[str, Any], *, at: tuple[str, ...] = ()) -> list[str]:
    """Return one line per wrong key: its dotted path, the value, what is allowed, the nearest name.

    Args:
        error: what pydantic found.
        tree: the whole tree.
        at: path of the part of the tree that was validated.
    """
    wrong: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    for item in error.errors():
        path = _path((*at, *item["loc"]), tree, item["type"])
        if item["type"] == "extra_forbidden":
            reason = f"unknown key{_nearest_key(path, tree)}"
        elif item["type"] == "missing":
            reason = "missing, and it has no default"
        else:
            reason = item["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
            if item["type"] != "value_error":
                values[path] = item["input"]
        wrong.setdefault(path, [])
        if reason not in wrong[path]:
            wrong[path].append(reason)
    lines = []
    for path, reasons in wrong.items():
        got = f"got {_short(values[path])}; " if path in values else ""
        lines.append(f"{path or 'settings'}: {got}{' or '.join(reasons)}")
    return lines


def cross_checks(
    tree: Mapping[str, Any], *, known_tasks: Iterable[str], router_kinds: Iterable[str] | None = None
) -> list[str]:
    """Return what is wrong between branches: names that do not exist, phases that do not go together.

    Args:
        tree: the composed values.
        known_tasks: tasks that recipes may mention without choosing them.
        router_kinds: kinds of router that there are; ``None`` leaves the kind unchecked.
    """
    tasks = tree.get("task")
    chosen = list(tasks) if isinstance(tasks, dict) else []
    experts = tree.get("experts")
    found = []
    for key, extra in (("train_rows", ["default", *known_tasks]), ("fixed_weights", known_tasks), ("fusion", ())):
        names = experts.get(key) if isinstance(experts, dict) else None
        allowed = dict.fromkeys([*chosen, *extra])
        for name in names if isinstance(names, dict) else ():
            if name not in allowed:
                found.append(f"experts.{key}.{name}: no such task{suggest(name, allowed)}; allowed: {one_of(allowed)}")
    base, bases = tree.get("base"), tree.get("bases")
    there = list(bases) if isinstance(bases, dict) else []
    if isinstance(base, dict) and isinstance(base.get("name"), str):
        there.append(base["name"])
    for name in chosen:
        wanted = tasks[name].get("base") if isinstance(tasks, dict) and isinstance(tasks[name], dict) else None
        if isinstance(wanted, str) and wanted not in there:
            found.append(
                f"task.{name}.base: no such base {wanted!r}{suggest(wanted, there)}; allowed: {one_of(there)}; "
                f"define others under 'bases'"
            )
    found += _fusion_checks(tree)
    unknown = _router_checks(tree, router_kinds)
    return [*found, *(unknown or _joint_checks(tree))]


def _router_checks(tree: Mapping[str, Any], kinds: Iterable[str] | None) -> list[str]:
    kind = _value(tree, "router", "kind")
    if kinds is None or not isinstance(kind, str) or kind in (allowed := list(kinds)):
        return []
    return [f"router.kind: no such router {kind!r}{suggest(kind, allowed)}; allowed: {one_of(allowed)}"]


def _fusion_checks(tree: Mapping[str, Any]) -> list[str]:
    """Return which fusions have sources that are not there, are on another base, or are too few."""
    tasks, fusions = tree.get("task"), _value(tree, "experts", "fusion")
    if not isinstance(tasks, dict) or not isinstance(fusions, dict):
        return []
    bases = {name: _value(tasks, name, "base") or _value(tree, "base", "name") for name in tasks}
    generative = [head for head in head_kinds if head_kind(head).is_generative]
    found = []
    for target in fusions:
        if target not in bases:
            continue  # named above
        mixed = (target, *(_value(fusions, target, "sources") or ()))
        wrong = [name for name in mixed if _value(tasks, name, "head") in generative]
        if wrong:
            found.append(
                f"experts.fusion.{target}: {one_of(map(repr, wrong))} writes text, and fusions are for heads "
                "that read; leave it out"
            )
            continue
        at = f"experts.fusion.{target}.sources"
        alike = [name for name in bases if bases[name] == bases[target]]
        given = _value(fusions, target, "sources")
        for name in given if isinstance(given, list | tuple) else ():
            if name not in bases:
                found.append(f"{at}: no such task {name!r}{suggest(str(name), alike)}; allowed: {one_of(alike)}")
            elif name not in alike:
                found.append(
                    f"{at}: task {name!r} sits on base {bases[name]!r}, and {target!r} on {bases[target]!r}; a fusion "
                    f"mixes experts of one base: {one_of(alike)}"
                )
        if given is None and len(alike) < 2:
            found.append(
                f"{at}: {target!r} is the only task on base {bases[target]!r}, and a fusion mixes two experts or more; "
                f"choose more tasks, or leave out experts.fusion.{target}"
            )
    return found


def _joint_checks(tree: Mapping[str, Any]) -> list[str]:
    """Return why the joint phase cannot be gone through, where it is asked for."""
    if _value(tree, "joint", "enabled") is not True:
        return []
    found = []
    kind = _value(tree, "router", "kind")
    if isinstance(kind, str) and kind not in GRADIENT_ROUTERS:
        found.append(
            f"joint.enabled: the joint phase trains the router by gradient, but router.kind is {kind!r}; "
            "choose router=mlp, or joint.enabled=false"
        )
    base, tasks = _value(tree, "base", "name"), tree.get("task")
    named = [_value(tasks, name, "base") or base for name in tasks] if isinstance(tasks, dict) else [base]
    if base not in named:
        found.append(
            f"joint.enabled: the joint phase trains router and experts on base {base!r}, but all tasks name "
            f"{one_of(set(map(str, named)))}; set joint.enabled=false"
        )
    return found


def _value(tree: Any, branch: str, key: str) -> Any:
    below = tree.get(branch) if isinstance(tree, dict) else None
    return below.get(key) if isinstance(below, dict) else None


def known_keys(tree: object, branch: Branch = ROOT, prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every key there is, below the names that ``tree`` holds."""
    branches = tree if isinstance(tree, dict) else {}
    for key in branches if branch.named else branch.model.model_fields:
        yield f"{prefix}{key}"
        below = branch.below(key)
        if below is not None:
            yield from known_keys(branches.get(key), below, f"{prefix}{key}.")


def _nearest_key(path: str, tree: Mapping[str, Any]) -> str:
    """Return a suggestion: a neighbour that is spelled alike, the same key elsewhere, or any path alike."""
    keys = list(known_keys(tree))
    parent, _, leaf = path.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in keys if k.rpartition(".")[0] == parent}
    near = suggest(leaf, siblings)
    if near:
        return near if not parent else near.replace("mean '", f"mean '{parent}.")
    elsewhere = [k for k in keys if k.rpartition(".")[2] == leaf and not k.startswith("task.")]
    if elsewhere:
        return f" (did you mean {' or '.join(repr(k) for k in elsewhere[:3])}?)"
    return suggest(path, keys) or (f"; allowed: {one_of(siblings)}" if siblings else "")


def _path(location: tuple[int | str, ...], tree: Any, kind: str) -> str:
    """Return the dotted path of an error, without pydantic's names for the members of a union."""
    parts: list[str] = []
    here: Any = tree
    for i, part in enumerate(location):
        inside = (
            part in here if isinstance(here, dict) else isinstance(here, (list, tuple)) and part in range(len(here))
        )
        if inside:
            here = here[part]
        elif kind != "missing" or i < len(location) - 1:
            continue
        parts.append(str(part))
    return ".".join(parts)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
