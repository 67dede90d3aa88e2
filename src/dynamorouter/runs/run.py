"""The folder of a run: whether it may be written to, whether it belongs to these settings, and what is done in it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamorouter.config.compose import load
from dynamorouter.config.schema import Config
from dynamorouter.errors import ConfigError
from dynamorouter.utils.files import read_json, write_json, writing
from dynamorouter.utils.jsonl import read_appended

NO_INFLUENCE = ("tracking", "search_path")
"""Settings that a resumed run may change: they have no part in its result."""


PHASES = ("experts", "router", "joint")
"""The phases that make a system, in order."""
STATE, LOG = "state.json", "log.jsonl"
SEEDS = "seeds"
"""Where a comparison has its runs, one for each seed."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder and settings.

    Attributes:
        config: the settings.
        out: the folder.
    """

    config: Config
    out: Path

    def phase(self, name: str) -> Path:
        """Where a phase's system is."""
        return self.out / "phases" / name

    def is_done(self, name: str) -> bool:
        """Whether a phase is done: ``prepare``, or one that makes a system."""
        if name == "prepare":
            return name in self.state()["log"] and (self.out / "data" / "manifest.json").is_file()
        return (self.phase(name) / "system.json").is_file()

    def state(self) -> dict[str, Any]:
        """What was done so far: the log's length and the seconds by phase, and which phase's system is published."""
        path = self.out / STATE
        return dict(read_json(path)) if path.is_file() else {"log": {}, "seconds": {}, "system": None}

    def note(self, name: str, *, seconds: float, log: int | None = None) -> None:
        """Note the seconds that a phase has taken, and with ``log``, the log's length, that it is done."""
        state = self.state()
        state.pop("failed", None)
        state["seconds"][name] = round(seconds, 3)
        if log is not None:
            state["log"][name] = log
        write_json(self.out / STATE, state)

    def note_failed_prepare(self) -> None:
        """Note that preparation failed: nothing is trained, so that the folder may take other settings."""
        write_json(self.out / STATE, {**self.state(), "log": {}, "failed": "prepare"})

    def publish(self, name: str) -> None:
        """Note that ``OUT/system`` is a phase's."""
        write_json(self.out / STATE, {**self.state(), "system": name})

    def is_published(self, name: str) -> bool:
        """Whether ``OUT/system`` is there, and of this phase or a later one."""
        published = self.state()["system"]
        is_on_disk = (self.out / "system" / "system.json").is_file()
        return is_on_disk and published is not None and PHASES.index(published) >= PHASES.index(name)

    def log_length(self, name: str, after: str, rounds: Mapping[str, int]) -> int:
        """Return how many bytes of the log to keep when a phase begins or goes on.

        Args:
            name: the phase.
            after: the phase before it, which is done.
            rounds: the last round of each part of the phase that a checkpoint holds; later lines are written again.
        """
        start = length = int(self.state()["log"][after])
        path = self.out / LOG
        if not rounds:
            return start
        for line, end in read_appended(path, start=start):
            if line.get("phase") != name or line["step"] > rounds.get(line.get("part", ""), -1):
                break
            length = end
        return length


def check_places(config: Config) -> None:
    """Look for the folders that local data is read from, before any work.

    Raises:
        ConfigError: folders are missing; all of them are named.
    """
    if config.data.source != "local":
        return
    root = Path(str(config.data.root))
    if not root.is_dir():
        raise ConfigError(f"data.root: there is no folder {str(root)!r}; name the folder that holds one per task")
    folders = {name: str(task.sources.get("local", {}).get("folder") or name) for name, task in config.task.items()}
    missing = [
        f"task {name!r} has no folder {str(root / folder)!r}"
        for name, folder in folders.items()
        if not (root / folder).is_dir()
    ]
    if missing:
        raise ConfigError(
            f"data.root: {'; '.join(missing)}; put train.jsonl there, or choose other tasks with task=[..]"
        )


def open_run(
    config: Config, out: Path, *, resume: bool, fresh: bool = True, free: Collection[str] = NO_INFLUENCE
) -> None:
    """Make sure that ``out`` may take this run, and write ``out/config.yaml`` if it is not there.

    A run that failed in preparation begins again, with the settings of this one.

    Args:
        config: the settings of the run.
        out: its folder.
        resume: go on with what is there.
        fresh: without ``resume`` the folder must be new or empty; false for a phase that builds on earlier ones.
        free: settings, or groups of them, that may differ from those that the run was started with.

    Raises:
        ConfigError: the folder holds something else, a run without ``resume``, or a run with other settings.
        OSError: the folder cannot be made or written to.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {str(out)!r} is a file; name a folder")
    settings = out / "config.yaml"
    if is_begun(out):
        state = "a finished run" if (out / "report.json").is_file() else "an unfinished run"
        if fresh and not resume:
            raise ConfigError(
                f"--out {str(out)!r} holds {state}; add --resume to go on with it, or name another folder "
                "(nothing was changed)"
            )
        _same(load(settings), config, settings, free=free)
        return
    if out.is_dir() and any(out.iterdir()) and not settings.is_file():
        raise ConfigError(f"--out {str(out)!r} is not empty and holds no run; name a new folder (nothing was changed)")
    keep_settings(config, out)


def is_begun(out: Path) -> bool:
    """Whether ``out`` holds a run that goes on with its own settings, and not one that failed before any training.

    A comparison failed so where the runs of all its seeds did.
    """
    if not (out / "config.yaml").is_file():
        return False
    if (out / STATE).is_file():
        return bool(read_json(out / STATE).get("failed") != "prepare")
    seeds = list((out / SEEDS).glob("*"))
    return not seeds or any(map(is_begun, seeds))


def saved_config(out: Path) -> Config | None:
    """Return the settings that the run in ``out`` was started with, if there is one."""
    settings = out / "config.yaml"
    return load(settings) if settings.is_file() else None


def keep_settings(config: Config, out: Path) -> None:
    """Write ``out/config.yaml`` anew, for a run that goes on with other settings of the free ones."""
    with writing(out / "config.yaml") as temporary:
        temporary.write_text(config.to_yaml(), encoding="utf-8")


def _same(old: Config, new: Config, path: Path, *, free: Collection[str]) -> None:
    before, after = dict(_leaves(old.to_json())), dict(_leaves(new.to_json()))
    changed = [
        f"{key} was {before.get(key)!r} and is {after.get(key)!r}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key) and not any(f"{key}.".startswith(f"{group}.") for group in free)
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
