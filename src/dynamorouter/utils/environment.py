"""What a measurement ran on: versions of packages, peak memory."""

from __future__ import annotations

import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

from dynamorouter import __version__

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scikit-learn", "safetensors")


def peak_memory_mb() -> float:
    """Return the largest resident size of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    installed = {"dynamorouter": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = "-"
    installed["threads"] = str(torch.get_num_threads())
    return installed
