"""Write the rows that ``tools/builtin_data`` generates into the package, or tell which of its files are stale.

python tools/write_builtin.py [--check]
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

from builtin_data import generate, names
from dynamorouter.data.builtin import FOLDER, SPLITS, rows_path


def render(task: str, split: str) -> bytes:
    """Return the generated rows of a split as JSON lines."""
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in generate(task, split)).encode()


def stale(folder: Path = FOLDER) -> dict[Path, bytes | None]:
    """Return the files that are not as generated, with what belongs in them; ``None`` where the file itself does not.

    What is compressed counts, not the compressed bytes: these may differ between versions of zlib.
    """
    lines_by_path = {rows_path(task, split, folder): render(task, split) for task in names() for split in SPLITS}
    differing: dict[Path, bytes | None] = {
        path: lines for path, lines in lines_by_path.items() if _shipped(path) != lines
    }
    return differing | dict.fromkeys(path for path in folder.glob("*/*.gz") if path not in lines_by_path)


def _shipped(path: Path) -> bytes | None:
    """Return the JSON lines of a file, or nothing where it is missing or damaged."""
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error):
        return None


def write(path: Path, lines: bytes | None) -> None:
    """Write one file, without a time in its header; or remove it where nothing belongs in it."""
    if lines is None:
        path.unlink()
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(lines, mtime=0))


def main(arguments: Sequence[str] | None = None, folder: Path = FOLDER) -> int:
    """Write the stale files of a folder, or with ``--check`` only name them.

    Returns:
        The exit status: 1 where ``--check`` finds a file that is not as generated.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, and fail where a file is not as generated")
    check = parser.parse_args(arguments).check
    differing = stale(folder)
    for path, lines in differing.items():
        print(f"{path.relative_to(folder)}: {'stale' if check else 'removed' if lines is None else 'written'}")
        if not check:
            write(path, lines)
    if check and differing:
        print(f"{len(differing)} files of built-in rows are not as generated; run: python tools/write_builtin.py")
    return int(check and bool(differing))


if __name__ == "__main__":
    sys.exit(main())
