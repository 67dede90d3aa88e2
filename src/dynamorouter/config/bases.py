"""Bases by the name of their settings, or by where they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from dynamorouter.config.checks import listed
from dynamorouter.config.files import CONF, group_file, list_names, read_tree
from dynamorouter.config.schema import ROOT
from dynamorouter.errors import ConfigError, one_of, suggest
from dynamorouter.model.base.config import BaseSpec, spec_at
from dynamorouter.utils.explain import explain


def find_base(name: str, *, search_path: Sequence[str | Path] = ()) -> BaseSpec:
    """Return one base.

    Args:
        name: the name of its settings, such as ``minilm``; else a folder, a GGUF file, or a hub id.
        search_path: folders laid out like ``conf/`` that names are looked up in too.

    Raises:
        ConfigError: there is no such base, or its settings are wrong.
    """
    folders = [CONF, *(Path(folder) for folder in search_path)]
    file = group_file("base", name, folders)
    if file is None:
        spec = spec_at(name)
        if spec is None:
            names = list_names("bases", folders)
            raise ConfigError(
                f"there is no base {name!r}{suggest(name, names)}: it is no name of settings, no folder with a "
                f"config.json, no GGUF file, and no hub id; names are {one_of(names)}, and a hub id is OWNER/NAME"
            )
        return spec
    tree = read_tree(file)
    try:
        return BaseSpec.model_validate({"name": name, **tree})
    except ValidationError as error:
        raise ConfigError(listed(explain(error, {"base": tree}, root=ROOT, below=("base",)))) from None
