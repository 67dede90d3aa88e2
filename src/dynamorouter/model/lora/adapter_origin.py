"""Which base an adapter was trained on, as far as its folder tells, and what its own card says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dynamorouter.errors import AdapterError, DataError
from dynamorouter.model.base.base import Base
from dynamorouter.model.lora.adapter_names import body_name
from dynamorouter.utils.files import read_json

CARD, HEAD = "card.json", "head.safetensors"
"""What lies beside the factors in an expert's own folder."""
SAMPLE = 64
"""Numbers of each weight that are compared."""


def base_notes(folder: Path, config: Mapping[str, Any], base: Base) -> tuple[str, ...]:
    """Say where an adapter names another base than the one it is used over, and what of an expert's folder is left out.

    Raises:
        AdapterError: the folder is an expert's own, whose card has the digest of other weights.
    """
    card = read_card(folder)
    digest = card.get("base", {}).get("digest") if isinstance(card.get("base"), dict) else None
    if digest is not None:
        if digest != base.digest:
            raise AdapterError(
                f"the expert in {folder} was trained on a base with digest {digest}, but base {base.spec.name!r} at "
                f"{base.spec.path!r} has {base.digest}; give the base it was trained on"
            )
        mixed = card.get("fusion")
        return ("its fusion is left out: it mixes experts of the system that it comes from",) if mixed else ()
    named = config.get("base_model_name_or_path")
    if not named or _is_named(str(named), base):
        return ()
    same = same_weights(Path(named), base) if Path(named).is_dir() else None
    if same:
        return ()
    how = "" if same is None else ", and the weights differ"
    return (
        f"the adapter says that it was trained on {named!r}, but is used over base {base.spec.name!r} "
        f"({base.spec.path}){how}: its answers are right only where the two are the same model",
    )


def read_card(folder: Path) -> dict[str, Any]:
    """Return the card of an expert's own folder; empty where there is none."""
    try:
        card = read_json(folder / CARD) if (folder / CARD).is_file() else {}
    except DataError as error:
        raise AdapterError(f"{error}; or take {CARD} out of the folder, and it is read as PEFT's alone") from error
    return card if isinstance(card, dict) else {}


def same_weights(folder: Path, base: Base) -> bool | None:
    """Tell whether a model's folder holds the base's weights, by a sample of each; ``None`` where it cannot be seen."""
    compared = False
    for name, tensor in _tensors(folder, base):
        weight = base.weights[name]
        if weight.shape != tensor.shape:
            return False
        step = max(1, weight.numel() // SAMPLE)
        sample, weight_sample = (t.detach().reshape(-1)[::step].cpu() for t in (tensor.to(weight.dtype), weight))
        if not torch.equal(sample, weight_sample):
            return False
        compared = True
    return True if compared else None


def _tensors(folder: Path, base: Base) -> Iterator[tuple[str, Tensor]]:
    """Yield a model folder's weights under the names that they have in the base."""
    with ExitStack() as stack:
        for path in sorted(folder.glob("*.safetensors")):
            try:
                handle = stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError):
                continue
            for key in handle.keys():  # noqa: SIM118 - the handle is no mapping
                name = body_name(key, base, base.weights)
                if name is not None and not name.startswith("pooler"):
                    yield name, handle.get_tensor(key)


def _is_named(named: str, base: Base) -> bool:
    """Tell whether a name is one of those that the base goes by."""
    spec = base.spec
    aliases = {spec.path, spec.fallback, spec.name, spec.locate(), getattr(base.config, "_name_or_path", None)}
    if named in aliases:
        return True
    if Path(named).is_dir():
        return any(alias and Path(alias).is_dir() and Path(named).samefile(alias) for alias in aliases)
    last = named.rstrip("/").rpartition("/")[2].casefold()
    return any(alias and str(alias).rstrip("/").rpartition("/")[2].casefold() == last for alias in aliases)
