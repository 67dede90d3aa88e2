"""Where a base model is found."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from dynamorouter.errors import MissingExtraError
from dynamorouter.utils.options import Later, Options

GGUF = ".gguf"
"""What the name of a file of llama.cpp's format ends in."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class BaseSpec(Options):
    """One frozen base model."""

    name: str
    """What experts and reports call it."""
    path: str
    """A local folder, a GGUF file, a hub name, or ``package:MODULE/FOLDER`` for one inside an installed package."""
    fallback: str | None = None
    """Hub name to use when ``path`` names a package that is not installed."""
    revision: str | None = None
    """Commit or tag on the hub; ``null`` for the newest."""
    pooling: Literal["cls", "mean"] = "cls"
    """How classification heads reduce the hidden states: the first position, or the masked mean."""
    kind: Literal["auto", "encoder", "decoder", "seq2seq"] = "auto"
    """Encoder, decoder or encoder-decoder; ``auto`` goes by the checkpoint's own config."""
    prompt: str = "plain"
    """Form in which a decoder's or encoder-decoder's router and writers read a row; an encoder reads text and pair."""
    special_in_text: Annotated[Literal["escape", "allow"], Later()] = "escape"
    """What a special token of the tokenizer, such as ``</s>``, is in a row's own text: characters, or that token."""

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


def spec_at(location: str) -> BaseSpec | None:
    """Return the settings of a base by where it is; ``None`` where no base can be.

    Args:
        location: a folder with a ``config.json``, a GGUF file, or a hub id, which is ``OWNER/NAME``.
    """
    path = Path(location).expanduser()
    if (path / "config.json").is_file() or (path.is_file() and is_gguf(location)):
        name = path.resolve().stem if path.is_file() else path.resolve().name
        return BaseSpec(name=_as_name(name), path=str(path.resolve()))
    if HUB_ID.fullmatch(location) and not path.exists() and not is_gguf(location):
        return BaseSpec(name=_as_name(location.rpartition("/")[2]), path=location)
    return None


def is_gguf(location: str) -> bool:
    """Tell whether a base's location is a GGUF file, by its name."""
    return location.endswith(GGUF)


def _as_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "base"


def package_folder(package: str) -> Path | None:
    """Return the folder of an installed package without importing it."""
    from importlib.util import find_spec

    module_spec = find_spec(package)
    if module_spec is None or not module_spec.submodule_search_locations:
        return None
    return Path(next(iter(module_spec.submodule_search_locations)))
