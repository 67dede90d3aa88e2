"""Files that are whole or not there: written under a temporary name, synced, and renamed. No pickle anywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamorouter.errors import DataError, LibraryError

if TYPE_CHECKING:
    from torch import Tensor

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def checked_name(name: str, *, kind: str = "name") -> str:
    """Return ``name`` if it is safe as one part of a path.

    Raises:
        LibraryError: it is empty, too long, starts with a dot, or holds a separator.
    """
    if not NAME.fullmatch(name) or ".." in name:
        raise LibraryError(
            f"{kind} {name!r} cannot be used as a file name; allowed are 1 to 100 letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit and without '..'"
        )
    return name


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; when the block ends well it is synced and takes the path's place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path``; when the block ends well it takes the path's place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, indented, with one newline at the end."""
    with writing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        DataError: the file is missing, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}; check the path, or make it again with 'dynamorouter run'") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON ({error}); it is damaged: restore it, or make it again") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors."""
    from safetensors.torch import save_file

    with writing(path) as temporary:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, temporary, metadata={"format": "pt", **(metadata or {})})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors.

    Raises:
        LibraryError: the file is missing, truncated or corrupt.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise LibraryError(f"there is no file {path}; restore it, or train the expert again") from error
    except (SafetensorError, ValueError) as error:
        raise LibraryError(
            f"{path} ({path.stat().st_size} bytes) is not a whole safetensors file: {error}; "
            "it is truncated or corrupt: restore it from a copy, or train the expert again"
        ) from error
