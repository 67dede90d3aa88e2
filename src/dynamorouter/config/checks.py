"""Checks across the branches of the settings: names that do not exist, phases that do not go together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from dynamorouter.errors import ConfigError, one_of, suggest
from dynamorouter.registry import PluginError
from dynamorouter.routing.config import RouterConfig
from dynamorouter.routing.registry import routers
from dynamorouter.tasks.kinds import head_kind, head_kinds
from dynamorouter.tasks.task import Task

SURELY_TRAINABLE = ("complexity", "mlp")
"""Routers that the joint phase can train, as is known without importing them and torch; others are asked."""


def check_names(tasks: Sequence[Task]) -> None:
    """Make sure that there are the metrics and sources that tasks name, and that the metrics judge their answers.

    Raises:
        ConfigError: something does not exist or fit; the message names every mistake.
    """
    from dynamorouter.data.sources import sources  # these two import numpy, which composing alone does without
    from dynamorouter.metrics.base import metrics

    problems = []
    for task in tasks:
        kind = head_kind(task.head).answer_kind
        fitting = [name for name, metric in metrics.items() if metric.answer_kind == kind]
        for name in task.metrics:
            if name not in metrics:
                reason = f"unknown metric {name!r}{suggest(name, metrics)}; allowed: {one_of(fitting)}"
                problems.append(f"task.{task.name}.metrics: {reason}")
            elif name not in fitting:
                reason = f"metric {name!r} does not judge a {task.head} head; allowed: {one_of(fitting)}"
                problems.append(f"task.{task.name}.metrics: {reason}")
        for name in task.sources:
            if name not in sources:
                reason = f"unknown source {name!r}{suggest(name, sources)}; allowed: {one_of(sources)}"
                problems.append(f"task.{task.name}.sources: {reason}")
    if problems:
        raise ConfigError(listed(problems))


def listed(mistakes: Sequence[str]) -> str:
    """Return one message that names every mistake."""
    if len(mistakes) == 1:
        return mistakes[0]
    return f"{len(mistakes)} settings are wrong:\n" + "\n".join(f"  {mistake}" for mistake in mistakes)


def cross_checks(tree: Mapping[str, Any], *, recipe_tasks: Collection[str]) -> list[str]:
    """Return what is wrong between branches: names that do not exist, phases that do not go together.

    Args:
        tree: the composed values.
        recipe_tasks: tasks that recipes may mention without choosing them.
    """
    mistakes = [*_task_names(tree, recipe_tasks), *_base_names(tree), *_fusion_checks(tree)]
    return [*mistakes, *(_router_checks(tree) or _joint_checks(tree))]


def no_such(path: str, what: str, name: str, allowed: Iterable[str]) -> str:
    """Return the mistake of a setting at ``path`` that names what there is not."""
    names = dict.fromkeys(allowed)
    return f"{path}: no such {what} {name!r}{suggest(name, names)}; allowed: {one_of(names)}"


def _task_names(tree: Mapping[str, Any], recipe_tasks: Collection[str]) -> Iterator[str]:
    """Yield which tasks that experts are set up by are not there."""
    for key, extra in (("train_rows", ["default", *recipe_tasks]), ("fixed_weights", recipe_tasks), ("fusion", ())):
        allowed = dict.fromkeys([*_branch(tree, "task"), *extra])
        for name in _branch(tree, "experts", key):
            if name not in allowed:
                yield f"experts.{key}.{name}: no such task{suggest(name, allowed)}; allowed: {one_of(allowed)}"


def _base_names(tree: Mapping[str, Any]) -> Iterator[str]:
    """Yield which bases that tasks name are not there."""
    default = _value(tree, "base", "name")
    bases = [*_branch(tree, "bases"), *([default] if isinstance(default, str) else [])]
    for task in _branch(tree, "task"):
        name = _value(tree, "task", task, "base")
        if isinstance(name, str) and name not in bases:
            yield f"{no_such(f'task.{task}.base', 'base', name, bases)}; define others under 'bases'"


def _router_checks(tree: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the kind of router and its options; torch is imported only where there are options."""
    kind, options = _value(tree, "router", "kind"), _branch(tree, "router", "options")
    if not isinstance(kind, str):
        return []
    if kind not in routers:
        return [no_such("router.kind", "router", kind, routers)]
    if kind in routers.built_in and not options:
        return []
    from dynamorouter.routing.options import option_mistakes, router_options

    try:
        router = routers.get(kind)
    except PluginError as error:
        return [f"router.kind: {error}"]
    shared = {**RouterConfig().model_dump(), "layers": (0,), "options": options}
    mistakes = option_mistakes(router, router_options(kind, shared))
    return [f"router.options.{name}: router {kind!r}: {reason}" for name, reason in mistakes.items()]


def _fusion_checks(tree: Mapping[str, Any]) -> Iterator[str]:
    """Yield which fusions have sources that are not there, are on another base, or are too few."""
    tasks, fusions = _branch(tree, "task"), _branch(tree, "experts", "fusion")
    bases = {name: _value(tasks, name, "base") or _value(tree, "base", "name") for name in tasks}
    generative = [head for head, kind in head_kinds.items() if kind.is_generative]
    for target in (name for name in fusions if name in bases):  # others are named as tasks that are not there
        sources = _value(fusions, target, "sources")
        sources = [str(name) for name in sources] if isinstance(sources, list | tuple) else None
        writing = [name for name in (target, *(sources or ())) if _value(tasks, name, "head") in generative]
        path, on_base = f"experts.fusion.{target}.sources", [name for name in bases if bases[name] == bases[target]]
        if writing:
            yield (
                f"experts.fusion.{target}: {one_of(map(repr, writing))} writes text, and fusions are for heads "
                "that read; leave it out"
            )
        elif sources is None and len(on_base) < 2:
            yield (
                f"{path}: {target!r} is the only task on base {bases[target]!r}, and a fusion mixes two experts or "
                f"more; choose more tasks, or leave out experts.fusion.{target}"
            )
        for name in sources if sources and not writing else ():
            if name not in bases:
                yield no_such(path, "task", name, on_base)
            elif name not in on_base:
                yield (
                    f"{path}: task {name!r} sits on base {bases[name]!r}, and {target!r} on {bases[target]!r}; a "
                    f"fusion mixes experts of one base: {one_of(on_base)}"
                )


def _joint_checks(tree: Mapping[str, Any]) -> list[str]:
    """Return why the joint phase cannot be gone through, where it is asked for."""
    if _value(tree, "joint", "enabled") is not True:
        return []
    mistakes = []
    kind = _value(tree, "router", "kind")
    if isinstance(kind, str) and kind not in SURELY_TRAINABLE and not routers.get(kind).trainable:
        able = [name for name, router in routers.items() if router.trainable]
        mistakes.append(
            f"joint.enabled: the joint phase trains the router by gradient, but router.kind is {kind!r}; "
            f"choose one of router={one_of(able)}, or joint.enabled=false"
        )
    base, tasks = _value(tree, "base", "name"), _branch(tree, "task")
    named = [_value(tasks, name, "base") or base for name in tasks] or [base]
    if base not in named:
        mistakes.append(
            f"joint.enabled: the joint phase trains router and experts on base {base!r}, but all tasks name "
            f"{one_of(set(map(str, named)))}; set joint.enabled=false"
        )
    return mistakes


def _value(tree: Any, *path: str) -> Any:
    """Return what stands at a path of a tree that may be wrong anywhere; ``None`` where nothing does."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _branch(tree: Any, *path: str) -> dict[str, Any]:
    """Return the mapping at a path, empty where there is none."""
    below = _value(tree, *path)
    return below if isinstance(below, dict) else {}
