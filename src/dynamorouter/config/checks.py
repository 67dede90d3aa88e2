"""Checks across the branches of the settings: names that do not exist, phases that do not go together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


def cross_checks(tree: Mapping[str, Any], *, known_tasks: Iterable[str]) -> list[str]:
    """Return what is wrong between branches: names that do not exist, phases that do not go together.

    Args:
        tree: the composed values.
        known_tasks: tasks that recipes may mention without choosing them.
    """
    tasks = tree.get("task")
    chosen = list(tasks) if isinstance(tasks, dict) else []
    experts = tree.get("experts")
    mistakes = []
    for key, extra in (("train_rows", ["default", *known_tasks]), ("fixed_weights", known_tasks), ("fusion", ())):
        names = experts.get(key) if isinstance(experts, dict) else None
        allowed = dict.fromkeys([*chosen, *extra])
        for name in names if isinstance(names, dict) else ():
            if name not in allowed:
                mistakes.append(
                    f"experts.{key}.{name}: no such task{suggest(name, allowed)}; allowed: {one_of(allowed)}"
                )
    base, bases = tree.get("base"), tree.get("bases")
    there = list(bases) if isinstance(bases, dict) else []
    if isinstance(base, dict) and isinstance(base.get("name"), str):
        there.append(base["name"])
    for name in chosen:
        wanted = tasks[name].get("base") if isinstance(tasks, dict) and isinstance(tasks[name], dict) else None
        if isinstance(wanted, str) and wanted not in there:
            mistakes.append(
                f"task.{name}.base: no such base {wanted!r}{suggest(wanted, there)}; allowed: {one_of(there)}; "
                f"define others under 'bases'"
            )
    mistakes += _fusion_checks(tree)
    unknown = _router_checks(tree)
    return [*mistakes, *(unknown or _joint_checks(tree))]


def _router_checks(tree: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the kind of router and its options; torch is imported only where there are options."""
    kind, options = _value(tree, "router", "kind"), _value(tree, "router", "options")
    if not isinstance(kind, str):
        return []
    if kind not in routers:
        return [f"router.kind: no such router {kind!r}{suggest(kind, routers)}; allowed: {one_of(routers)}"]
    if kind in routers.built_in and not options:
        return []
    from dynamorouter.routing.options import option_mistakes, router_options

    try:
        router = routers.get(kind)
    except PluginError as error:
        return [f"router.kind: {error}"]
    shared = {**RouterConfig().model_dump(), "layers": (0,), "options": options if isinstance(options, dict) else {}}
    mistakes = option_mistakes(router, router_options(kind, shared))
    return [f"router.options.{mistake} (router {kind!r})" for mistake in mistakes]


def _fusion_checks(tree: Mapping[str, Any]) -> list[str]:
    """Return which fusions have sources that are not there, are on another base, or are too few."""
    tasks, fusions = tree.get("task"), _value(tree, "experts", "fusion")
    if not isinstance(tasks, dict) or not isinstance(fusions, dict):
        return []
    bases = {name: _value(tasks, name, "base") or _value(tree, "base", "name") for name in tasks}
    generative = [head for head, kind in head_kinds.items() if kind.is_generative]
    mistakes = []
    for target in fusions:
        if target not in bases:
            continue  # named above
        mixed = (target, *(_value(fusions, target, "sources") or ()))
        wrong = [name for name in mixed if _value(tasks, name, "head") in generative]
        if wrong:
            mistakes.append(
                f"experts.fusion.{target}: {one_of(map(repr, wrong))} writes text, and fusions are for heads "
                "that read; leave it out"
            )
            continue
        at = f"experts.fusion.{target}.sources"
        alike = [name for name in bases if bases[name] == bases[target]]
        given = _value(fusions, target, "sources")
        for name in given if isinstance(given, list | tuple) else ():
            if name not in bases:
                mistakes.append(f"{at}: no such task {name!r}{suggest(str(name), alike)}; allowed: {one_of(alike)}")
            elif name not in alike:
                mistakes.append(
                    f"{at}: task {name!r} sits on base {bases[name]!r}, and {target!r} on {bases[target]!r}; a fusion "
                    f"mixes experts of one base: {one_of(alike)}"
                )
        if given is None and len(alike) < 2:
            mistakes.append(
                f"{at}: {target!r} is the only task on base {bases[target]!r}, and a fusion mixes two experts or more; "
                f"choose more tasks, or leave out experts.fusion.{target}"
            )
    return mistakes


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
    base, tasks = _value(tree, "base", "name"), tree.get("task")
    named = [_value(tasks, name, "base") or base for name in tasks] if isinstance(tasks, dict) else [base]
    if base not in named:
        mistakes.append(
            f"joint.enabled: the joint phase trains router and experts on base {base!r}, but all tasks name "
            f"{one_of(set(map(str, named)))}; set joint.enabled=false"
        )
    return mistakes


def _value(tree: Any, branch: str, key: str) -> Any:
    below = tree.get(branch) if isinstance(tree, dict) else None
    return below.get(key) if isinstance(below, dict) else None
