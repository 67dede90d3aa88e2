"""The files of an adapter folder, read without trust: which folder, which shards, whole finite floating tensors."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dynamorouter.errors import AdapterError, DataError, one_of
from dynamorouter.model.lora.adapter_config import CONFIG
from dynamorouter.utils.files import file_sha256, read_json, read_tensors

WEIGHTS = "adapter_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
PICKLED = "adapter_model.bin"
_SHARD = re.compile(r"adapter_model-(\d{5})-of-(\d{5})\.safetensors")


def find_folder(folder: Path) -> Path:
    """Return where the adapter lies: the folder itself, or the only one below it, as PEFT saves a named adapter.

    Raises:
        AdapterError: there is none, or there are several.
    """
    if not folder.is_dir():
        raise AdapterError(
            f"{folder} has no {CONFIG}, as there is no such folder; give one that PEFT's save_pretrained wrote"
        )
    if (folder / CONFIG).is_file():
        return folder
    below = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if len(below) > 1:
        raise AdapterError(f"{folder} holds several adapters: {one_of(path.name for path in below)}; name one of them")
    if not below:
        raise AdapterError(f"{folder} has no {CONFIG}; give a folder that PEFT's save_pretrained wrote")
    return below[0]


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read an adapter's tensors from its safetensors file, or from the shards of one.

    Raises:
        AdapterError: there are no safetensors, a shard is missing, or a tensor is empty, not floating or not finite.
        LibraryError: a file is truncated or corrupt.
    """
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        for key, tensor in read_tensors(path).items():
            if key in tensors:
                raise AdapterError(f"{path} holds {key!r}, which another shard holds as well; save the adapter again")
            tensors[key] = tensor
    check_tensors(tensors, folder)
    return tensors


def check_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse tensors that no training can have made.

    Raises:
        AdapterError: one is empty, not floating or not finite.
    """
    for key, tensor in tensors.items():
        _check(key, tensor, folder)


def weight_files(folder: Path) -> list[Path]:
    """List the files that hold an adapter's tensors.

    Raises:
        AdapterError: there are none that are not pickled, or a shard is missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        shards = _indexed(folder / INDEX)
    else:
        numbers = [match for path in folder.iterdir() if (match := _SHARD.fullmatch(path.name))]
        shards = {f"adapter_model-{i:05d}-of-{m[2]}.safetensors" for m in numbers for i in range(1, int(m[2]) + 1)}
    missing = sorted(name for name in shards if not (folder / name).is_file())
    if missing:
        raise AdapterError(f"{folder} lacks {', '.join(missing)} of a sharded adapter; copy all of its files")
    if shards:
        return [folder / name for name in sorted(shards)]
    names = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    pickled = "pickled adapters are not loaded: " if (folder / PICKLED).is_file() else ""
    raise AdapterError(
        f"{folder} has no {WEIGHTS} (found: {names}); {pickled}"
        "load it with PEFT and save it again with safe_serialization=True"
    )


def source_of(folder: Path) -> dict[str, str]:
    """Return where an adapter comes from, for a card: its place, and the SHA-256 of its weights."""
    sha = hashlib.sha256()
    for path in weight_files(folder):
        sha.update(bytes.fromhex(file_sha256(path)))
    return {"adapter": str(folder), "sha256": sha.hexdigest()}


def _indexed(path: Path) -> set[str]:
    """Return the names of the shards that an index lists."""
    try:
        names = set(read_json(path)["weight_map"].values())
    except (DataError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(f"{path} is damaged ({error}); save the adapter again") from error
    odd = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if odd:
        raise AdapterError(f"{path} names {odd[0]!r}, which is no file beside it; save the adapter again")
    return names


def _check(key: str, tensor: Tensor, folder: Path) -> None:
    """Refuse a tensor that no training can have made."""
    if not tensor.numel():
        raise AdapterError(
            f"the adapter in {folder} holds an empty tensor {key!r} of shape {tuple(tensor.shape)}: it was saved from "
            "one part of a sharded model (DeepSpeed ZeRO-3, FSDP); gather the weights and save it again"
        )
    if not tensor.is_floating_point():
        raise AdapterError(
            f"the adapter in {folder} holds {key!r} as {str(tensor.dtype).removeprefix('torch.')}; weights are "
            "floating numbers (float32, float16, bfloat16): save it again without quantising the adapter"
        )
    values = tensor.float()
    if not bool(torch.isfinite(values).all()):
        word = "NaN" if bool(torch.isnan(values).any()) else "Inf"
        raise AdapterError(
            f"the adapter in {folder} holds {word} in {key!r}: its training failed; take an earlier checkpoint, or "
            "train it again with a lower learning rate or in float32"
        )
