"""Names in an adapter: from the keys of its file to PEFT's own names, and from those to the layers of a base.

PEFT matches ``target_modules``, ``rank_pattern`` and ``alpha_pattern`` against a layer's full name in the model that
was trained, such as ``model.layers.1.self_attn.q_proj`` or ``bert.encoder.layer.0.output.dense``; so it is here.
Patterns come from files, so each match is given a moment and no more.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import TypeVar

import regex

from dynamorouter.errors import AdapterError
from dynamorouter.model.base.base import Base
from dynamorouter.model.lora.adapter_config import PeftConfig

V = TypeVar("V")
PREFIX = "base_model.model."
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of a name that torch.compile, FSDP and activation checkpointing put in."""
BODIES = {"model", "language_model", "transformer", "module"}
"""What task models call their body, beside the name that its own class gives it."""
PATIENCE = 0.2
"""Seconds of processor time that one match may take."""


def peft_name(key: str) -> str:
    """Return the full name that PEFT knows a tensor by, without ``base_model.model.`` and what wraps that."""
    before, prefix, name = key.partition(PREFIX)
    return name if prefix and not set(before.strip(".").split(".")) - WRAPPERS - {"", "module"} else key


def bare_name(name: str, base: Base) -> str:
    """Return a full name without what the model that was trained put before it, such as ``bert.`` or ``model.``."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while len(parts) > 1 and parts[0] in _bodies(base):
        parts = parts[1:]
    return ".".join(parts)


def body_name(name: str, base: Base, body_names: Collection[str]) -> str | None:
    """Return the name of a layer or parameter inside the base's body, or ``None`` where ``body_names`` has none of it.

    Args:
        name: the full name in the model that was trained.
        base: the base.
        body_names: the names that the body has.
    """
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while ".".join(parts) not in body_names:
        if len(parts) < 2 or parts[0] not in _bodies(base):
            return None
        parts = parts[1:]
    return ".".join(parts)


def matches_target(config: PeftConfig, name: str) -> bool:
    """Tell whether PEFT would put factors on a layer of this full name.

    Raises:
        AdapterError: a pattern is no regular expression, or takes too long.
    """
    if _named(config.exclude_modules, name):
        return False
    if any(_match(rf"(^|.*\.){module}($|\..*)", name, "modules_to_save") for module in config.modules_to_save or ()):
        return False
    if isinstance(config.target_modules, str):
        everything = config.target_modules.lower() == "all-linear"
        return everything or _match(rf"(?:{config.target_modules})\Z", name, "target_modules")
    if name in config.target_modules:
        return True
    return _named(config.target_modules, name) and _transformed(config, name)


def pattern_value(patterns: Mapping[str, V], name: str, default: V, setting: str) -> V:
    """Look a full name up as PEFT does: the first pattern that matches it or its ending.

    Raises:
        AdapterError: a pattern is no regular expression, or takes too long.
    """
    for pattern, value in patterns.items():
        if _match(rf"(.*\.)?({pattern})$", name, setting):
            return value
    return patterns.get(name, default)


def _bodies(base: Base) -> set[str]:
    return {*BODIES, str(getattr(type(base.model), "base_model_prefix", "") or "model")}


def _named(modules: str | list[str] | None, name: str) -> bool:
    """Tell whether a regular expression for whole names, or a list of endings, names a layer."""
    if isinstance(modules, str):
        return bool(modules) and _match(rf"(?:{modules})\Z", name, "exclude_modules")
    return any(name == ending or name.endswith(f".{ending}") for ending in modules or ())


def _transformed(config: PeftConfig, name: str) -> bool:
    """Tell whether a layer's block is among ``layers_to_transform``."""
    numbers = config.layers_to_transform
    if numbers is None or numbers == []:
        return True
    patterns = [config.layers_pattern] if isinstance(config.layers_pattern, str) else config.layers_pattern
    forms = [rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\." for pattern in patterns or ()] or [r".*?\.[^.]*\.(?P<idx>\d+)\."]
    index = next((number for form in forms if (number := _index(form, name)) is not None), None)
    return index is not None and (index == numbers if isinstance(numbers, int) else index in numbers)


def _match(pattern: str, name: str, setting: str) -> bool:
    return _search(pattern, name, setting) is not None


def _index(pattern: str, name: str) -> int | None:
    match = _search(pattern, name, "layers_pattern")
    return None if match is None else int(match["idx"])


@lru_cache(maxsize=4096)  # an expert of a merge may have a rank of its own on every layer
def _compiled(pattern: str) -> regex.Pattern[str]:
    re.compile(pattern)  # PEFT's own engine says what a pattern is
    return regex.compile(pattern, cache_pattern=False)


def _search(pattern: str, name: str, setting: str) -> regex.Match[str] | None:
    """Match a pattern at the beginning of a name, as ``re.match`` does, but not for ever."""
    try:
        return _compiled(pattern).match(name, timeout=PATIENCE)
    except (re.error, regex.error, RecursionError, OverflowError) as error:
        raise AdapterError(
            f"{setting} of the adapter holds a pattern that is no regular expression ({error}): {pattern[:80]!r}; "
            "correct it in adapter_config.json"
        ) from None
    except TimeoutError:
        raise AdapterError(
            f"{setting} of the adapter holds a pattern that takes too long to match ({pattern[:80]!r} on {name!r}); "
            "write it without nested repetitions in adapter_config.json"
        ) from None
