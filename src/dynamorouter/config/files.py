"""The files that settings are composed of: where they are, what their names are, and how one is read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from dynamorouter.errors import ConfigError, one_of, suggest
from dynamorouter.utils.explain import Tree

CONF = Path(__file__).parents[1] / "conf"
GROUPS = ("recipe", "preset", "base", "data", "router", "task")
"""Keys whose value may be a name: that of a file in ``conf/KEY/``."""
KINDS = {group if group == "data" else f"{group}s": group for group in GROUPS}
"""What a list of a group's names is called, to the group."""


def list_names(kind: str, folders: Iterable[Path] = (CONF,)) -> dict[str, str]:
    """Return the names of all recipes, or of whatever else ``KINDS`` holds, with a line on each.

    The line is the first comment of the file that is not a Hydra directive. Imports no torch.
    """
    if kind not in KINDS:
        raise ConfigError(f"cannot list {kind!r}{suggest(kind, KINDS)}; allowed: {one_of(KINDS)}")
    abouts = {}
    for folder in folders:
        for path in sorted((folder / KINDS[kind]).glob("*.yaml")):
            comments = [
                line.lstrip("# ").strip() for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"
            ]
            abouts[path.stem] = next((c for c in comments if c and not c.startswith("@")), "")
    return abouts


def group_file(group: str, name: str, folders: Iterable[Path]) -> Path | None:
    """Return the file of a group's choice, in the last of the folders that has one."""
    return next((path for folder in [*folders][::-1] if (path := folder / group / f"{name}.yaml").is_file()), None)


def read_tree(path: Path) -> Tree:
    """Return the mapping in a JSON or YAML file."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        text = path.read_text(encoding="utf-8")
        tree = (
            json.loads(text) if path.suffix == ".json" else OmegaConf.to_container(OmegaConf.create(text), resolve=True)
        )
    except FileNotFoundError:
        raise ConfigError(f"config file {str(path)!r} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {str(path)!r} cannot be read: {error}") from error
    except (json.JSONDecodeError, YAMLError, OmegaConfBaseException) as error:
        form = "JSON" if path.suffix == ".json" else "YAML"
        raise ConfigError(f"config file {str(path)!r} is not valid {form}: {error}") from error
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(f"config file {str(path)!r} must hold one mapping of settings, not a {type(tree).__name__}")
    return {str(key): value for key, value in tree.items()}
