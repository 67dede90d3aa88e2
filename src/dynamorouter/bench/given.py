"""Experts that are there already: a comparison of a saved system's instead of freshly trained ones."""

from __future__ import annotations

from pathlib import Path

from dynamorouter.bench.contest import fresh_base
from dynamorouter.errors import ConfigError, one_of
from dynamorouter.files import writing_folder
from dynamorouter.runs import Run
from dynamorouter.settings import Config
from dynamorouter.system import EXPERTS, MANIFEST, System


def check_given(config: Config) -> list[str]:
    """Return why the named system's experts cannot be compared; nothing where experts are to be trained."""
    place = config.bench.system
    if place is None:
        return []
    folder = Path(place)
    if not (folder / MANIFEST).is_file():
        return [f"bench.system: {place!r} is no saved system; give a folder such as runs/quickstart/system"]
    found = []
    missing = [name for name in config.task if not (folder / EXPERTS / name).is_dir()]
    if missing:
        found.append(
            f"bench.system: {place!r} has no expert {one_of(map(repr, missing))}; name tasks of its experts, task=[..]"
        )
    if config.bench.seeds != 1:
        found.append(
            f"bench.seeds is {config.bench.seeds}, but the experts of bench.system are there once; set bench.seeds=1"
        )
    return found


def take_experts(config: Config, run: Run) -> None:
    """Put the named system's experts, in the order of the tasks, where a run keeps those that it has trained.

    Raises:
        ConfigError: an expert sits on another base than the comparison's.
    """
    place = run.phase("router")
    if (place / MANIFEST).is_file() or config.bench.system is None:
        return
    given = System.load(config.bench.system, device=config.device, precision=config.precision)
    base = fresh_base(config)
    experts = [given.experts[given.index(name)] for name in config.task]
    others = [expert.name for expert in experts if given.bases[expert.base].digest != base.digest]
    if others:
        raise ConfigError(
            f"the experts {one_of(others)} of {config.bench.system!r} sit on another base than {config.base.name!r}; "
            "choose theirs with base=NAME, or leave these tasks out"
        )
    fused = [expert.name for expert in experts if expert.fusion is not None]
    if fused:
        raise ConfigError(f"the experts {one_of(fused)} of {config.bench.system!r} are fused, and cannot be merged")
    named = given.bases[experts[0].base]
    with writing_folder(place) as temporary:
        System({named.spec.name: named}, experts, None, router_base=named.spec.name).save(temporary)
