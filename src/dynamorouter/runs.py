"""The folder of a run: whether it may be written to, and whether it belongs to these settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dynamorouter.config import load
from dynamorouter.errors import ConfigError
from dynamorouter.files import writing
from dynamorouter.settings import Config

NO_INFLUENCE = ("tracking", "search_path")
"""Settings that a resumed run may change: they have no part in its result."""


def open_run(config: Config, out: Path, *, resume: bool, fresh: bool = True) -> None:
    """Make sure that ``out`` may take this run, and write ``out/config.yaml`` if it is not there.

    Args:
        config: the settings of the run.
        out: its folder.
        resume: go on with what is there.
        fresh: without ``resume`` the folder must be new or empty; false for a phase that builds on earlier ones.

    Raises:
        ConfigError: the folder holds something else, a run without ``resume``, or a run with other settings.
        OSError: the folder cannot be made or written to.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {str(out)!r} is a file; name a folder")
    settings = out / "config.yaml"
    if settings.is_file():
        state = "a finished run" if (out / "report.json").is_file() else "an unfinished run"
        if fresh and not resume:
            raise ConfigError(
                f"--out {str(out)!r} holds {state}; add --resume to go on with it, or name another folder "
                "(nothing was changed)"
            )
        _same(load(settings), config, settings)
        return
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"--out {str(out)!r} is not empty and holds no run; name a new folder (nothing was changed)")
    with writing(settings) as temporary:
        temporary.write_text(config.to_yaml(), encoding="utf-8")


def saved_config(out: Path) -> Config | None:
    """Return the settings that the run in ``out`` was started with, if there is one."""
    settings = out / "config.yaml"
    return load(settings) if settings.is_file() else None


def _same(old: Config, new: Config, path: Path) -> None:
    before, after = dict(_leaves(old.to_json())), dict(_leaves(new.to_json()))
    changed = [
        f"{key} was {before.get(key)!r} and is {after.get(key)!r}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key) and key.partition(".")[0] not in NO_INFLUENCE
    ]
    if changed:
        raise ConfigError(
            f"the run was started with other settings ({str(path)!r}): {'; '.join(changed)}; "
            "repeat the settings it was started with, or name another --out (nothing was changed)"
        )


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree
