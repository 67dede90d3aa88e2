"""Files that are whole or not there: written under a temporary name, synced, and renamed. No pickle anywhere."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamorouter.errors import DataError, DynamoRouterError, LibraryError

if TYPE_CHECKING:
    from torch import Tensor

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+\.(?P<kind>tmp|old)")
_OS_ERROR = re.compile(r"os error (\d+)")


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
    path = path.resolve()
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


def recover(path: Path) -> None:
    """Put back a folder whose replacement was killed between its two renames."""
    path = path.resolve()
    if path.exists() or not path.parent.is_dir():
        return
    for old in sorted(path.parent.glob(f".{path.name}.*.old")):
        old.rename(path)
        return


def sweep(folder: Path) -> None:
    """Delete what killed processes left half written in a folder that nobody else writes to."""
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if _TEMPORARY.fullmatch(path.name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, indented, with one newline at the end."""
    with writing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        DataError: the file is missing, cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}; check the path, or make it again with 'dynamorouter run'") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); it is damaged: restore it, or make it again") from error


def read_form(
    path: Path,
    *,
    format: int,
    entries: Mapping[str, type | tuple[type, ...]],
    error: type[DynamoRouterError] = LibraryError,
    remedy: str = "restore it from a copy, or make it again",
) -> dict[str, Any]:
    """Read a JSON object of a known format.

    Args:
        path: the file.
        format: what its entry ``format`` must be.
        entries: what it must hold besides, with the types of the values.
        error: what is raised.
        remedy: ends every message.

    Raises:
        DynamoRouterError: of class ``error``: the file is missing or not JSON, no object, of another format, or an
            entry is missing or of another type; all such entries are named.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror or problem}; {remedy}") from problem
    except (ValueError, RecursionError) as problem:
        raise error(f"{path} is damaged: it is not JSON ({problem}); {remedy}") from problem
    if not isinstance(value, dict) or "format" not in value:
        raise error(f"{path} is damaged: it is a JSON {type(value).__name__} without 'format'; {remedy}")
    if value["format"] != format:
        raise error(
            f"{path} has format {value['format']!r}, but this version reads format {format}; "
            f"update dynamorouter, or {remedy}"
        )
    faults = [
        f"{key!r} is {type(value[key]).__name__}" if key in value else f"{key!r} is missing"
        for key, types in entries.items()
        if not isinstance(value.get(key, ...), types)
    ]
    if faults:
        raise error(f"{path} is damaged: {', '.join(faults)}; {remedy}")
    return value


def read_finished(
    manifest: Path, *, digest: str, hashes: Callable[[dict[str, Any]], Mapping[str, str]]
) -> dict[str, Any] | None:
    """Return a manifest that was written with this digest and whose files are as they were written, else ``None``.

    Args:
        manifest: a JSON file; a damaged one counts as none.
        digest: what its entry ``digest`` must be: the hash of all that the files depend on.
        hashes: from the manifest's value to the SHA-256 of each file by its path below the manifest's folder.
    """
    try:
        value = read_json(manifest)
    except DataError:
        return None
    if not isinstance(value, dict) or value.get("digest") != digest:
        return None
    unchanged = all(
        (path := manifest.parent / name).is_file() and file_sha256(path) == sha for name, sha in hashes(value).items()
    )
    return value if unchanged else None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; check the path and its permissions") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, the same bytes for the same values.

    Args:
        path: where to.
        tensors: by name.
        metadata: one entry at most, since the library writes several in any order; ``{"format": "pt"}`` by default.

    Raises:
        OSError: the file cannot be written, for instance because the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with writing(path) as temporary:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            save_file(plain, temporary, metadata=dict(metadata or {"format": "pt"}))
        except SafetensorError as error:  # it hides the system's error in its message
            code_in_message = _OS_ERROR.search(str(error))
            code = int(code_in_message[1]) if code_in_message else errno.EIO
            raise OSError(code, os.strerror(code) if code_in_message else str(error), str(path)) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file.

    Raises:
        LibraryError: the file is missing, truncated or corrupt.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            return dict(handle.metadata() or {})
    except (OSError, RuntimeError, SafetensorError) as error:
        raise LibraryError(f"{path} is not a whole safetensors file: {error}; restore it from a copy") from error


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
