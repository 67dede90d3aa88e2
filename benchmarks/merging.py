"""Merging eight r-16 experts of a 12-layer, 768-wide base at rank 16 by SVD, beside PEFT and mergekit.

Every side goes from adapter folders to an adapter folder in a process of its own, one thread, in turn; imports are not
counted. PEFT is ``add_weighted_adapter(combination_type="svd")``, as it comes and without the singular vectors that it
throws away; mergekit's route leads through full checkpoints: each adapter into the base, ``task_arithmetic``, and an
adapter extracted from the result. Goals: at least 10 times faster than either (``over_best_peer`` at most 0.1), with
less memory. Then the time of every method on one block, and how near each is to its dense float64 reference.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from _common import arguments, finish, row
from _merging import SIDES, write_work
from dynamorouter.merging.merge import merge_factors
from dynamorouter.merging.registry import merges
from dynamorouter.merging.truncate import Output
from dynamorouter.model.lora.factors import Factors
from dynamorouter.utils.seeding import seeded

HERE = Path(__file__).resolve().parent
Experts = dict[str, dict[str, Factors]]


def in_processes(work: Path, *, rank: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Run every side once per round, in turn, each in a fresh process."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, own in found.items():
            line = [sys.executable, str(HERE / "_merging.py"), side, str(work), str(rank)]
            done = subprocess.run(
                line, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            if done.returncode:
                raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
            own.append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(f"{side}: {own[-1]}", flush=True)
    return found


def block(width: int, experts: int, rank: int) -> Experts:
    """Draw experts of one block's linear layers, with a part that all have in common."""
    shapes = {name: (width, width) for name in ("q", "k", "v", "o")}
    shapes |= {"gate": (4 * width, width), "up": (4 * width, width), "down": (width, 4 * width)}
    made: Experts = {}
    for i in range(experts):
        made[f"e{i}"] = {}
        for name, (out, wide) in shapes.items():
            own, common = seeded(0, name, str(i)), seeded(0, name)
            a = torch.randn(rank, wide, generator=own) + torch.randn(rank, wide, generator=common)
            b = torch.randn(out, rank, generator=own) + torch.randn(out, rank, generator=common)
            made[f"e{i}"][name] = Factors(0.02 * a, 0.02 * b, 2.0)
    return made


def data_of(need: str, experts: Experts) -> dict[str, Any]:
    """Make up what a method needs."""
    seen: dict[str, dict[str, torch.Tensor]] = {}
    for name, factors in experts.items():
        seen[name] = {}
        for layer, f in factors.items():
            out, width = f.b.shape[0], f.a.shape[1]
            generator = seeded(1, name, layer)
            x = torch.randn(width + 64, width, generator=generator)
            seen[name][layer] = x.T @ x if need == "grams" else torch.rand(out, width, generator=generator)
    return {need: seen}


def methods(experts: Experts, *, rank: int) -> list[dict[str, Any]]:
    """Time every method on one block; searches are left out, since they take what their objective takes."""
    rows = []
    for name in merges:
        method = merges.get(name)
        if method.needs in ("objective", "entropy"):
            continue
        used = dict(list(experts.items())[: method.experts or None])
        options = data_of(method.needs, used) if method.needs else {}
        weights = torch.full((len(used),), 1.0 if method.weights == "ones" else 1 / len(used), dtype=torch.float64)
        start = time.perf_counter()
        merge_factors(used, method, weights, Output("rank", rank), options=options)
        took = 1000 * (time.perf_counter() - start)
        rows.append(row(f"one block, {name}", {"ours": [took]}, limit=None))
        print(f"{name}: {took:.0f} ms", flush=True)
    return rows


def svd_error(experts: Experts, *, rank: int, layers: Sequence[str]) -> float:
    """Return the largest relative difference between our merge and a dense float64 SVD, over some layers."""
    some = {name: {layer: factors[layer] for layer in layers} for name, factors in experts.items()}
    weights = torch.full((len(some),), 1 / len(some), dtype=torch.float64)
    written, _ = merge_factors(some, merges.get("linear"), weights, Output("rank", rank))
    worst = 0.0
    for layer, each in written.items():
        dense = sum(f[layer].scaling * f[layer].b.double() @ f[layer].a.double() for f in some.values()) / len(some)
        u, s, v = torch.linalg.svd(dense, full_matrices=False)
        best = (u[:, :rank] * s[:rank]) @ v[:rank]
        got = each.factors.b.double() @ each.factors.a.double()
        worst = max(worst, float((got - best).norm() / best.norm()))
    return worst


def references() -> dict[str, float]:
    """Return the largest relative difference of each method from the tests' dense float64 reference."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from mergecases import apart, make_experts
    from mergereference import stacks_of
    from test_merge_reference import RANKS, TABLE, WEIGHTS

    experts = make_experts(RANKS)
    worst: dict[str, float] = {}
    for case, reference, options in TABLE:
        want = reference(stacks_of(experts), torch.tensor(WEIGHTS, dtype=torch.float64), **options)
        found = apart(case.merge(experts, weights=WEIGHTS), want)
        worst[case.method] = max(worst.get(case.method, 0.0), found)
    return worst


def main() -> None:
    """Measure and write."""
    parser = arguments("merging", __doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often every side is run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    blocks, width, experts, rank = (2, 256, 4, 8) if options.quick else (12, 768, 8, 16)
    case = f"{experts} experts r={rank}, {blocks}x{width} all-linear, to rank {rank} by SVD"
    with tempfile.TemporaryDirectory() as folder:
        write_work(Path(folder), blocks=blocks, width=width, experts=experts, rank=rank)
        found = in_processes(Path(folder), rank=rank, rounds=options.rounds)
    rows = []
    for what, key in (("merge alone", "merge_ms"), ("from folders to a folder", "whole_ms")):
        times = {side: [run[key] for run in runs] for side, runs in found.items()}
        cpu = {side: min(run[key.replace("_ms", "_cpu_ms")] for run in runs) for side, runs in found.items()}
        rows.append(row(f"{case}: {what}", times, limit=0.1, against="over_best_peer", cpu_ms=cpu))
    memory = {
        key: {side: max(run[key] for run in runs) for side, runs in found.items()} for key in ("peak_mb", "rise_mb")
    }
    own = block(width, experts, rank)
    rows += methods(own, rank=rank)
    finish(
        options.out,
        rows,
        memory=memory,
        svd_error=svd_error(own, rank=rank, layers=["q", "up", "down"]),
        reference_errors=references(),
    )


if __name__ == "__main__":
    main()
