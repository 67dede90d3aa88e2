"""Building a router from options, and saving it as ``router.json`` and ``router.safetensors``.

Nothing is unpickled. Both files are written beside their place and renamed into it; the JSON file carries the
checksum of the tensors, so that a half-written or exchanged pair is noticed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from dynamorouter.errors import ConfigError, RouterError, one_of, suggest
from dynamorouter.routing.base import Router
from dynamorouter.routing.options import option_mistakes, options_of
from dynamorouter.routing.registry import routers
from dynamorouter.utils.files import read_form, write_json, writing

OPTIONS_FILE = "router.json"
TENSORS_FILE = "router.safetensors"
FORMAT = 1
REMEDY = "copy the folder again, or fit the router again"


def build(kind: str, options: Mapping[str, Any]) -> Router:
    """Build an unfitted router from its registered name and its options.

    Raises:
        ConfigError: the name or an option is unknown, or a needed option is missing; all mistakes are named.
        RouterError: nothing but values is wrong: an option is of another type or out of range.
    """
    router = routers.get(kind)
    model = options_of(router)
    mistakes = option_mistakes(router, options)
    if mistakes:
        names = {name.partition(".")[0] for name in mistakes}
        error = RouterError if names <= options.keys() & model.model_fields.keys() else ConfigError
        raise error(f"router {kind!r}: " + "; ".join(f"{name}: {reason}" for name, reason in mistakes.items()))
    values = model.model_validate(dict(options))
    return router(**{name: getattr(values, name) for name in values.model_fields_set})


def kind_of(router: Router) -> str:
    """Return the name under which the class of ``router`` is registered.

    Raises:
        RouterError: it is not registered.
    """
    name = routers.name_of(type(router))
    if name is None:
        raise RouterError(
            f"{type(router).__name__} is not a registered router; decorate it with @routers.register('name') to save it"
        )
    return name


def save(router: Router, folder: str | os.PathLike[str]) -> None:
    """Write ``router`` into ``folder``, which is created when missing.

    Raises:
        RouterError: the router is not fitted or registered, or the files cannot be written.
    """
    target = Path(folder)
    options, tensors = router.state()
    data = safetensors.torch.save({name: value.cpu().contiguous() for name, value in tensors.items()})
    record = {
        "format": FORMAT,
        "kind": kind_of(router),
        "options": options,
        "tensors": {"file": TENSORS_FILE, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
    }
    try:
        with writing(target / TENSORS_FILE) as temporary:
            temporary.write_bytes(data)
        write_json(target / OPTIONS_FILE, record)
    except OSError as error:
        raise RouterError(
            f"cannot write the router into {target}: {error.strerror or error}; "
            "free some space or choose a folder that can be written to"
        ) from error


def load(folder: str | os.PathLike[str]) -> Router:
    """Read the router that ``save`` wrote into ``folder``.

    Raises:
        RouterError: a file is missing, truncated, damaged, of a later version, or does not fit the other.
    """
    path = Path(folder) / OPTIONS_FILE
    entries = {"kind": str, "options": dict, "tensors": dict}
    record = read_form(path, format=FORMAT, entries=entries, error=RouterError, remedy=REMEDY)
    kind, options, expected = record["kind"], record["options"], record["tensors"]
    tensors_path = Path(folder) / TENSORS_FILE
    data = _read(tensors_path)
    if len(data) != expected.get("bytes") or hashlib.sha256(data).hexdigest() != expected.get("sha256"):
        raise _damaged(
            tensors_path,
            f"it holds {len(data)} bytes and {OPTIONS_FILE} describes {expected.get('bytes')} with another checksum",
        )
    if kind not in routers:
        raise RouterError(
            f"{path} holds a router of kind {kind!r}{suggest(str(kind), routers)}; known: {one_of(routers)}; "
            "import the module that registers it, or fit the router again"
        )
    try:
        return routers.get(kind).restore(options, safetensors.torch.load(data))
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError, RouterError) as error:
        raise _damaged(path, f"its content does not make a {kind!r} router ({error})") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RouterError(f"cannot read {path}: {error.strerror or error}; {REMEDY}") from error


def _damaged(path: Path, reason: str) -> RouterError:
    return RouterError(f"{path} is damaged: {reason}; {REMEDY}")
