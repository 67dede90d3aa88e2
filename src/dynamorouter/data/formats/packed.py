"""Files as they are or packed by gzip, and what is said where they cannot be read."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from dynamorouter.errors import DataError


def packed_suffix(path: Path) -> str:
    """Return the end of a file's name in small letters, with that of what is packed: ``.csv`` or ``.csv.gz``."""
    suffix = path.suffix.lower()
    return f"{path.with_suffix('').suffix.lower()}.gz" if suffix == ".gz" else suffix


def open_bytes(path: Path) -> BinaryIO:
    """Open a file, unpacked."""
    return cast(BinaryIO, gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def open_text(path: Path) -> TextIO:
    """Open a text in UTF-8, with or without a mark of byte order, its line ends as they are."""
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline="")


def read_bytes(path: Path) -> bytes:
    """Return what a file holds, unpacked."""
    with open_bytes(path) as file:
        return file.read()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say what is wrong with a file that cannot be read in the block.

    Raises:
        DataError: it is not there, may not be read, is not packed wholly, or holds no UTF-8.
    """
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is no whole gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; check the path and its permissions") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not valid UTF-8 at byte {error.start} (0x{error.object[error.start]:02x}); save it as UTF-8"
        ) from error
