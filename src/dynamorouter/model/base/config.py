"""Where a base model is found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dynamorouter.errors import MissingExtraError
from dynamorouter.utils.options import Options

Kind = Literal["auto", "encoder", "decoder", "seq2seq"]
"""Kinds of base; ``auto`` goes by the checkpoint's own config."""


class BaseSettings(Options):
    """One frozen base model."""

    name: str
    """What experts and reports call it."""
    path: str
    """A local folder, a hub name, or ``package:MODULE/FOLDER`` for a model inside an installed package."""
    fallback: str | None = None
    """Hub name to use when ``path`` names a package that is not installed."""
    revision: str | None = None
    """Commit or tag on the hub; ``null`` for the newest."""
    pooling: Literal["cls", "mean"] = "cls"
    """How classification heads reduce the hidden states: the first position, or the masked mean."""
    kind: Kind = "auto"
    """Encoder, decoder or encoder-decoder; ``auto`` goes by the checkpoint's own config."""
    prompt: str = "plain"
    """Form in which a decoder's or encoder-decoder's router and writers read a row; an encoder reads text and pair."""


@dataclass(frozen=True, slots=True)
class BaseSpec:
    """Where a base is found.

    Attributes:
        name: the name that experts refer to.
        path: a local folder, a hub id, or ``package:PACKAGE/FOLDER`` for one that a Python package carries.
        fallback: hub id to use when the package of ``path`` is not installed.
        revision: branch, tag or commit on the hub.
        kind: ``encoder``, ``decoder`` or ``seq2seq``; ``auto`` goes by the checkpoint's config.
        prompt: name of the prompt format in which routing reads rows on this base.
    """

    name: str
    path: str
    fallback: str | None = None
    revision: str | None = None
    kind: str = "auto"
    prompt: str = "plain"

    def locate(self) -> str:
        """Return a folder or a hub id that ``transformers`` can load."""
        if not self.path.startswith("package:"):
            return self.path
        package, _, inner = self.path.removeprefix("package:").partition("/")
        folder = package_folder(package)
        if folder is not None and (folder / inner / "config.json").is_file():
            return str(folder / inner)
        if self.fallback is not None:
            return self.fallback
        raise MissingExtraError(
            f"base {self.name!r} comes from the package {package!r}, which is not installed; "
            "install it with: pip install 'dynamorouter[offline]'"
        )


def package_folder(package: str) -> Path | None:
    """Return the folder of an installed package without importing it."""
    from importlib.util import find_spec

    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations)))


def base_spec(settings: BaseSettings) -> BaseSpec:
    """Return where a base is found."""
    return BaseSpec(
        settings.name,
        settings.path,
        settings.fallback,
        settings.revision,
        kind=settings.kind,
        prompt=settings.prompt,
    )
