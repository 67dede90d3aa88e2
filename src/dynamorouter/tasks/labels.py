"""A value of the data as a label of the task: white space, Unicode form and the spelling of numbers do not matter."""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")
_TRUTH = {"false": 0.0, "true": 1.0}


def is_missing(value: Any) -> bool:
    """Tell whether a value says that there is no label: null, an empty cell, or NaN, as tables write it."""
    value = _plain(value)
    return (
        value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and value != value)
    )


def match_label(value: Any, labels: Sequence[str]) -> str | None:
    """Return the label that a value of the data stands for; ``None`` where none does, or more than one.

    A text is a label where they are the same but for white space and Unicode form (NFC); else a number or truth value,
    or a text that spells one, is the label of the same value: ``1``, ``1.0``, ``true`` and ``TRUE`` are label ``1``.
    Case is not passed over.
    """
    value = _plain(value)
    if not isinstance(value, (str, int, float)):
        return None
    by_text, by_value = _lookup(tuple(labels))
    text = _folded(str(value))
    if text in by_text:
        return by_text[text]
    number = _value(text)
    return None if number is None else by_value.get(number)


def nearest_label(value: Any, labels: Sequence[str]) -> str | None:
    """Return the label that a value was likely meant to be: the same but for case, or else the most alike."""
    by_case = {_folded(label).casefold(): label for label in labels}
    near = difflib.get_close_matches(_folded(str(value)).casefold(), by_case, n=1)
    return by_case[near[0]] if near else None


def whole_number(value: Any) -> int | None:
    """Return the whole number that a value is or spells; ``None`` for all else, truth values among it."""
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    text = _folded(str(value))
    number = float(text) if _NUMBER.fullmatch(text) else math.nan
    return int(number) if number.is_integer() else None


def _plain(value: Any) -> Any:
    """Return a number of numpy or torch as Python's own, and all else as it is."""
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "ndim", 1) == 0 else value


@cache
def _lookup(labels: tuple[str, ...]) -> tuple[dict[str, str], dict[float, str]]:
    """Return labels by their folded text and, where it is the only one of its value, by the number they spell."""
    by_value: dict[float, list[str]] = {}
    for label in labels:
        number = _value(_folded(label))
        if number is not None:
            by_value.setdefault(number, []).append(label)
    by_text = {_folded(label): label for label in labels} | {label: label for label in labels}
    return by_text, {number: same[0] for number, same in by_value.items() if len(same) == 1}


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _value(text: str) -> float | None:
    if text.casefold() in _TRUTH:
        return _TRUTH[text.casefold()]
    number = float(text) if _NUMBER.fullmatch(text) else math.nan
    return number if math.isfinite(number) else None
