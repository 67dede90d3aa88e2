"""Tiny real models and rows that all tests share; nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing by threads, and workers share the cores
os.environ.setdefault("MKL_NUM_THREADS", "1")

import pytest
import torch

from dynamorouter.model.base.base import Base
from dynamorouter.model.base.config import BaseSpec
from support.builders import write_tiny
from support.shared import made_once


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from an architecture's name to a folder that holds a tiny model of it."""

    def folder(architecture: str) -> Path:
        return made_once(tmp_path_factory, f"tiny/{architecture}", lambda new: write_tiny(new, architecture))

    return folder


@pytest.fixture
def tiny_base(tiny_folder: Callable[[str], Path]) -> Callable[..., Base]:
    """Return a function that loads a fresh tiny base."""

    def load(architecture: str = "bert") -> Base:
        spec = BaseSpec(name="tiny", path=str(tiny_folder(architecture)))
        return Base.load(spec, device=torch.device("cpu"))

    return load


@pytest.fixture(scope="session")
def lm_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from an architecture's name to a folder that holds a tiny language model of it."""
    from support.tinylm import write_lm

    def folder(architecture: str) -> Path:
        return made_once(tmp_path_factory, f"lm/{architecture}", lambda new: write_lm(new, architecture))

    return folder


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``conf`` and ``rows`` for tiny runs (see ``tinyrun``)."""
    from support.tinyrun import write_conf, write_rows

    def make(folder: Path) -> None:
        write_conf(folder / "conf")
        write_rows(folder / "rows")

    return made_once(tmp_path_factory, "home", make)


@pytest.fixture(scope="session")
def finished(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished tiny run, which no test may change."""
    from support.tinyrun import finish, settings

    return made_once(tmp_path_factory, "finished", lambda folder: finish(settings(home), folder / "run")) / "run"
