"""What all benchmarks share: timing in turn, one table, one JSON form."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore", category=FutureWarning)
warnings.filterwarnings("ignore", category=UserWarning)

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "peft", "tokenizers", "numpy", "scikit-learn", "accelerate")
Work = Callable[[], object]


def arguments(name: str, about: str) -> argparse.ArgumentParser:
    """Return a parser that knows ``--out`` and ``--quick``."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="where the JSON is written")
    parser.add_argument("--quick", action="store_true", help="a small selection, within a minute")
    return parser


def in_turn(works: Mapping[str, Work], *, rounds: int) -> dict[str, list[float]]:
    """Time each piece of work once per round, in turn, after one warm-up; milliseconds."""
    cuda = torch.cuda.is_available()
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            if cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            work()
            if cuda:
                torch.cuda.synchronize()
            times[name].append(1000 * (time.perf_counter() - start))
    return times


def ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the median over rounds of one side's time over the other's: drift cancels within a round."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def row(
    case: str, times: Mapping[str, Sequence[float]], *, limit: float | None, against: str = "over_base", **more: Any
) -> dict[str, Any]:
    """Make one row from times named ``ours``, ``base`` and whatever the peers are called.

    ``limit`` is on the ratio that ``against`` names: the most that is wanted.
    """
    ours = times["ours"]
    peers = {name: values for name, values in times.items() if name not in ("ours", "base")}
    best = min(peers, key=lambda name: statistics.median(peers[name])) if peers else None
    made: dict[str, Any] = {
        "case": case,
        "ours_ms": statistics.median(ours),
        "base_ms": statistics.median(times["base"]) if "base" in times else None,
        "peers_ms": {name: statistics.median(values) for name, values in peers.items()},
        "over_base": ratio(ours, times["base"]) if "base" in times else None,
        "over_best_peer": ratio(ours, peers[best]) if best else None,
        "limit": limit,
    }
    if limit is not None:
        made["within"] = bool(made[against] <= limit)
    return {**made, "rounds": len(ours), **more}


def finish(out: Path, rows: Sequence[Mapping[str, Any]], **more: Any) -> None:
    """Print the table and write the JSON."""
    table = Table("case", "ours ms", "base ms", "peers ms", "over base", "over best peer", "limit")
    for each in rows:
        peers = ", ".join(f"{name} {value:.1f}" for name, value in each["peers_ms"].items())
        cells = (each["ours_ms"], each["base_ms"], peers, each["over_base"], each["over_best_peer"], each["limit"])
        table.add_row(each["case"], *(_cell(cell) for cell in cells))
    Console(width=150).print(table)
    out.parent.mkdir(parents=True, exist_ok=True)
    result = {"rows": list(rows), **more, "versions": versions(), "machine": machine()}
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {out}")


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def machine() -> dict[str, Any]:
    """Describe the machine, as far as a result depends on it."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "system": platform.system(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
