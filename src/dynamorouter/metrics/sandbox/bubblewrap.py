"""The command that starts the sandbox in namespaces of its own by ``bubblewrap`` (``bwrap``), where that is installed.

Inside there are no network, no processes but its own, and no files but the interpreter's, which cannot be changed, and
the job's folder. The limits and guards that the child sets up itself hold inside as they do without.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache")
"""What an interpreter's shared libraries may lie in."""
_DEVICES = ("/dev/null", "/dev/urandom")


def executable() -> str | None:
    """Return the path of ``bwrap``; ``None`` where it is not installed, or this is not Linux."""
    return shutil.which("bwrap") if sys.platform == "linux" else None


def command(bwrap: str, script: Path, *, folder: str, flags: Sequence[str]) -> list[str]:
    """Return the command that runs a script of ours in ``folder``, the only place that it can write to.

    Args:
        bwrap: path of the program.
        script: that the interpreter runs; nothing beside it can be seen.
        folder: where it runs.
        flags: of the interpreter.
    """
    python = os.path.realpath(sys.executable)
    readable = dict.fromkeys([*_SYSTEM, sys.base_prefix, str(Path(python).parents[1])])
    return [
        bwrap,
        *("--unshare-all", "--die-with-parent", "--cap-drop", "ALL"),
        *(word for path in readable for word in ("--ro-bind-try", path, path)),
        *("--ro-bind", str(script), str(script)),
        *(word for path in _DEVICES for word in ("--dev-bind", path, path)),
        *("--bind", folder, folder, "--remount-ro", "/", "--chdir", folder),
        *("--", python, *flags, str(script)),
    ]


def exit_status(status: int) -> int:
    """Return the status as ``subprocess`` gives it: of a child that signal N ended, ``bwrap`` itself exits 128 + N."""
    return 128 - status if status > 128 else status
