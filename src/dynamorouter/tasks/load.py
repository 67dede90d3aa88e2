"""From the plain values of a task's YAML file to a ``Task``, with all mistakes named at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast

from dynamorouter.data.sources import sources
from dynamorouter.errors import ConfigError, one_of, suggest
from dynamorouter.metrics.base import metrics
from dynamorouter.tasks.kinds import head_kind, head_kinds
from dynamorouter.tasks.spec import TASK_NAME
from dynamorouter.tasks.task import Columns, Generation, Task

_KEYS = tuple(field.name for field in fields(Task))
_COLUMN_KEYS = tuple(field.name for field in fields(Columns))
_GENERATION_KEYS = tuple(field.name for field in fields(Generation))


def task_from_config(mapping: Mapping[str, Any]) -> Task:
    """Build a task from plain values, as a task's YAML file holds them.

    Args:
        mapping: the fields of ``Task`` as dicts, lists, strings and numbers; ``name``, ``head`` and ``columns`` are
            needed, all others have defaults.

    Raises:
        ConfigError: a key is unknown or missing, or a value is not allowed; the message lists all of them.
    """
    problems = [f"unknown key {key!r}{suggest(str(key), _KEYS)}" for key in mapping if key not in _KEYS]
    for check in (_names, _columns, _labels, _metrics, _sources, _numbers, _generation):
        problems.extend(check(mapping))
    if problems:
        listed = "".join(f"\n- {problem}" for problem in problems)
        raise ConfigError(f"task {mapping.get('name', 'without a name')!r} has {len(problems)} mistake(s):{listed}")
    values = dict(mapping)
    columns = dict(values["columns"])
    values["columns"] = Columns(**{**columns, "extra": dict(columns.get("extra") or {})})
    generation = dict(values.get("generation") or {})
    values["generation"] = Generation(**{**generation, "stop": tuple(generation.get("stop") or ())})
    values["labels"] = tuple(values.get("labels") or ())
    values["sources"] = {name: dict(options or {}) for name, options in (values.get("sources") or {}).items()}
    values["hyper"] = dict(values.get("hyper") or {})
    if "metrics" in values:
        values["metrics"] = tuple(values["metrics"])
    return Task(**values)


def _names(mapping: Mapping[str, Any]) -> list[str]:
    problems = []
    name, head = mapping.get("name"), mapping.get("head")
    if not isinstance(name, str) or not TASK_NAME.fullmatch(name):
        problems.append(f"name is {name!r}; it is also a folder's name: letters, digits, - and _, such as 'sst2'")
    if head not in head_kinds:
        problems.append(f"head is {head!r}{suggest(str(head), head_kinds)}; allowed: {one_of(head_kinds)}")
    if not isinstance(mapping.get("base"), str | None):
        problems.append(f"base is {mapping['base']!r}; give the name of a base, or null for the system's default")
    return problems


def _columns(mapping: Mapping[str, Any]) -> list[str]:
    columns = mapping.get("columns")
    if not isinstance(columns, Mapping):
        return [f"columns is {columns!r}; give text, target, and where there is one pair and id"]
    problems = [
        f"unknown key columns.{key}{suggest(str(key), _COLUMN_KEYS)}" for key in columns if key not in _COLUMN_KEYS
    ]
    problems += [f"columns.{key} is missing" for key in ("text", "target") if not columns.get(key)]
    for key, value in columns.items():
        if key in _COLUMN_KEYS and key != "extra" and not isinstance(value, str | None):
            problems.append(f"columns.{key} is {value!r}; give a column's name")
    extra = columns.get("extra") or {}
    if not isinstance(extra, Mapping) or not all(isinstance(column, str) for column in extra.values()):
        problems.append(f"columns.extra is {extra!r}; give names of columns by the name that a metric knows them by")
    return problems


def _labels(mapping: Mapping[str, Any]) -> list[str]:
    labels = mapping.get("labels") or []
    if not isinstance(labels, (list, tuple)) or not all(isinstance(label, str) for label in labels):
        return [f"labels is {labels!r}; give a list of strings (quote words like 'no' and numbers in YAML)"]
    problems = []
    repeated = sorted({label for label in labels if list(labels).count(label) > 1})
    if repeated:
        problems.append(f"labels repeat {', '.join(repeated)}")
    head, positive, columns = mapping.get("head"), mapping.get("positive"), mapping.get("columns")
    if head in head_kinds and isinstance(columns, Mapping):
        extra = columns.get("extra")
        problems += head_kind(str(head)).problems(
            str(head), labels, pair=columns.get("pair"), extra=extra if isinstance(extra, Mapping) else None
        )
    if positive is not None and positive not in labels:
        problems.append(f"positive is {positive!r}{suggest(str(positive), labels)}; allowed: {one_of(labels)}")
    return problems


def _metrics(mapping: Mapping[str, Any]) -> list[str]:
    named = mapping.get("metrics", ["accuracy"])
    if not isinstance(named, (list, tuple)) or not named:
        return [f"metrics is {named!r}; give a list with at least one name, the first being the headline"]
    problems = []
    head = mapping.get("head")
    kind = head_kind(str(head)).answer_kind if head in head_kinds else None
    suited = [name for name, metric in metrics.items() if metric.answer_kind == kind]
    for name in named:
        if name not in metrics:
            problems.append(f"unknown metric {name!r}{suggest(str(name), metrics)}; allowed: {one_of(metrics)}")
        elif name not in suited and kind is not None:
            problems.append(f"metric {name!r} does not judge a {head} head; allowed: {one_of(suited)}")
    return problems


def _sources(mapping: Mapping[str, Any]) -> list[str]:
    problems = []
    named = mapping.get("sources") or {}
    if not isinstance(named, Mapping):
        return [f"sources is {named!r}; give a mapping such as {{local: {{}}}}"]
    for name, options in named.items():
        if name not in sources:
            problems.append(f"unknown source {name!r}{suggest(str(name), sources)}; allowed: {one_of(sources)}")
        if not isinstance(options, Mapping | None):
            problems.append(f"sources.{name} is {options!r}; give a mapping of its options, {{}} for none")
    if not isinstance(mapping.get("hyper", {}), Mapping | None):
        problems.append(f"hyper is {mapping['hyper']!r}; give a mapping of settings")
    return problems


def _generation(mapping: Mapping[str, Any]) -> list[str]:
    problems = []
    given, prompt = mapping.get("generation") or {}, mapping.get("prompt")
    if not isinstance(prompt, str | None):
        problems.append(f"prompt is {prompt!r}; give the name of a prompt format, or null for that of the base")
    if not isinstance(given, Mapping):
        return [*problems, f"generation is {given!r}; give a mapping such as {{max_new_tokens: 64}}"]
    problems += [
        f"unknown key generation.{key}{suggest(str(key), _GENERATION_KEYS)}"
        for key in given
        if key not in _GENERATION_KEYS
    ]
    limits: dict[str, tuple[type | tuple[type, ...], float, float]] = {
        "max_new_tokens": (int, 1, math.inf),
        "top_k": (int, 0, math.inf),
        "temperature": ((int, float), 0, math.inf),
        "top_p": ((int, float), 0, 1),
        "no_repeat_ngram": (int, 0, math.inf),
        "repetition_penalty": ((int, float), 0, math.inf),
    }
    for key, (kind, low, high) in limits.items():
        value = given.get(key)
        wrong = not isinstance(value, kind) or isinstance(value, bool)
        if key in given and (wrong or not low <= cast(float, value) <= high):
            problems.append(f"generation.{key} is {value!r}; give a number from {low} to {high}")
    stop = given.get("stop") or ()
    if not isinstance(stop, (list, tuple)) or not all(isinstance(text, str) and text for text in stop):
        problems.append(f"generation.stop is {stop!r}; give a list of texts, none of them empty")
    return problems


def _numbers(mapping: Mapping[str, Any]) -> list[str]:
    defaults = {field.name: field.default for field in fields(Task)}
    limits = {"version": 1, "max_tokens": 8, "stride": 0}
    values = {key: mapping.get(key, defaults[key]) for key in limits}
    problems = [
        f"{key} is {value!r}; give a whole number of at least {limits[key]}"
        for key, value in values.items()
        if not isinstance(value, int) or isinstance(value, bool) or value < limits[key]
    ]
    if not problems and cast(int, values["stride"]) >= cast(int, values["max_tokens"]):
        problems.append(f"stride is {values['stride']}; it must be below max_tokens, {values['max_tokens']}")
    return problems
