"""Errors a user can act on: each says what failed, the value, what is allowed, and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DynamoRouterError(Exception):
    """The base of every error this package raises on purpose; the CLI prints it and exits with 2."""


class ConfigError(DynamoRouterError):
    """A setting is unknown, of the wrong type, or out of range."""


class DataError(DynamoRouterError):
    """A file, a row or a column is not what the task needs."""


class BankShapeError(DynamoRouterError):
    """Factors do not fit the layer or the bank that they are loaded into."""


class AdapterError(DynamoRouterError):
    """An adapter folder cannot be represented exactly, or belongs to another base."""


class LibraryError(DynamoRouterError):
    """The folder of experts is damaged, or an expert in it is missing or already there."""


class MergeError(DynamoRouterError):
    """Experts cannot be merged rightly, or not by this method."""


class RouterError(DynamoRouterError):
    """A router was asked for something that it was not fitted to do."""


class TrainingError(DynamoRouterError):
    """Training cannot go on, for instance because a loss is no longer a number."""


class MissingExtraError(DynamoRouterError):
    """An optional package is needed and not installed."""


def suggest(value: str, allowed: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the nearest allowed name, or an empty string."""
    near = difflib.get_close_matches(value, list(allowed), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def one_of(allowed: Iterable[str]) -> str:
    """List the allowed names for a message, sorted and comma separated."""
    return ", ".join(sorted(allowed))
