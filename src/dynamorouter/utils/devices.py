"""Which device and number format to compute in."""

from __future__ import annotations

import time

import torch

from dynamorouter.errors import ConfigError, one_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """Return the device that ``auto``, ``cpu`` or ``cuda`` stands for.

    Raises:
        ConfigError: CUDA was asked for and is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but torch finds no CUDA device; use device=cpu, or install a CUDA build")
    return torch.device(name)


def now(device: torch.device) -> float:
    """Return the seconds of a clock once all that was asked of a device is done; a GPU works on by itself."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the number format that ``auto``, ``fp32``, ``bf16`` or ``fp16`` stands for on a device.

    Raises:
        ConfigError: the name is unknown, or the device cannot train or run in that format.
    """
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if name not in DTYPES:
        raise ConfigError(f"precision is {name!r}; allowed: auto, {one_of(DTYPES)}")
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("precision is 'fp16' on a CPU, which has no fast fp16; use fp32 or bf16 there")
    return DTYPES[name]
