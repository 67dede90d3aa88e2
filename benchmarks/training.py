"""Packed training beside PEFT with Hugging Face's Trainer, one task after another, on the six real tasks.

Both sides get the same tokenised rows, epochs, rows per step, learning rates and no dropout; the Trainer groups rows by
length. Goals: 1.2 times faster with experts in all layers, 2.5 times over three epochs with the trunk cached, at mean
scores within one point; on a GPU 2 and 4 times. ``over_best_peer`` is our time over the peer's: 0.8 is 1.25 times
faster.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from _common import arguments, finish, row
from _training import DEFAULT_DATA, Packed, by_trainer, examine, mean, minilm, plans, sample, tasks_of_seven, timed


def speed(case: str, packed: Packed, layers: dict[str, str], *, rounds: int, limit: float) -> dict[str, Any]:
    """Time whole trainings in turn; of the Trainer's side, ``Trainer.train`` alone."""
    times: dict[str, list[float]] = {"ours": [], **{name: [] for name in layers}}
    for i in range(rounds + 1):
        found = {"ours": timed(packed.train)[1]}
        for name, kind in layers.items():
            found[name] = sum(by_trainer(packed, task, layers=kind)[1] for task in range(len(packed.plans)))
        if i:  # the first round warms up
            for name, seconds in found.items():
                times[name].append(1000 * seconds)
    return row(
        case,
        times,
        limit=limit,
        against="over_best_peer",
        tokens_per_epoch=packed.tokens(),
        windows_per_epoch=sum(map(len, packed.examples)),
    )


def timed_cases(base: Any, tasks: Any, rows: Any, depths: Sequence[int], *, rounds: int) -> list[dict[str, Any]]:
    """Time one epoch with experts in all layers, and three with the trunk cached."""
    gpu = torch.cuda.is_available()
    packed = Packed.of(base, plans(tasks, depth=0, epochs=1), rows)
    limit = 1 / (2.0 if gpu else 1.2)
    names = {"PEFT + Trainer": "lora"}
    table = [speed("experts in all layers, one epoch", packed, names, rounds=rounds, limit=limit)]
    print(table[-1]["over_best_peer"], file=sys.stderr)
    for depth in depths:
        packed = Packed.of(base, plans(tasks, depth=depth, epochs=3), rows)
        names = {"PEFT + Trainer, same layers": "lora", "PEFT + Trainer, all layers": "all"}
        limit = 1 / (4.0 if gpu else 2.5)
        table.append(speed(f"trunk of {depth} cached, three epochs", packed, names, rounds=rounds, limit=limit))
        print(table[-1]["over_best_peer"], file=sys.stderr)
    return table


def scores(
    base: Any, tasks: Any, data: Path, depths: Sequence[int], *, train_rows: int, epochs: int, seed: int
) -> list[dict[str, Any]]:
    """Train both ways on more rows, once, and score both on held-out rows."""
    held_rows = 500
    rows = sample(tasks, data, "train", train_rows, seed=seed)
    held = sample(tasks, data, "validation", held_rows, seed=seed)
    found = []
    for depth in depths:
        packed = Packed.of(base, plans(tasks, depth=depth, epochs=epochs), rows, seed=seed)
        learners, ours_s = timed(partial(packed.train, seed=seed))
        ours = {t.name: examine(base, t.plan.task, held[t.name], t) for t in learners}
        peers_s, peers, loose = 0.0, {}, {}
        for i, task in enumerate(tasks):
            trained, seconds = by_trainer(packed, i, layers="lora", seed=seed)
            peers_s += seconds
            peers[task.name] = examine(base, task, held[task.name], trained)
            trained, _ = by_trainer(packed, i, layers="lora", seed=seed, grouped=False)
            loose[task.name] = examine(base, task, held[task.name], trained)
            told = f"PEFT {peers[task.name]:.3f}, without grouping by length {loose[task.name]:.3f}"
            print(f"depth {depth} {task.name}: ours {ours[task.name]:.3f}, {told}", flush=True)
        found.append(
            {
                "trunk_depth": depth,
                "train_rows": train_rows,
                "held_rows": held_rows,
                "epochs": epochs,
                "seed": seed,
                "ours": ours,
                "peft": peers,
                "peft_ungrouped": loose,
                "mean_ours": mean(list(ours.values())),
                "mean_peft": mean(list(peers.values())),
                "ours_s": ours_s,
                "peft_s": peers_s,
            }
        )
    return found


def main() -> None:
    """Run the benchmark."""
    parser = arguments("training", __doc__ or "")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder with the real rows")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=16, help="rows per task in the timed trainings")
    parser.add_argument("--depth", type=int, nargs="+", default=[4], help="trunk depths of the cached cases")
    parser.add_argument("--score-rows", type=int, default=0, help="rows per task in scored trainings; 0 for none")
    parser.add_argument("--score-depth", type=int, nargs="+", default=[0, 3], help="trunk depths of scored trainings")
    parser.add_argument("--score-seeds", type=int, nargs="+", default=[0], help="seeds of rows, order and weights")
    parser.add_argument("--tasks", nargs="+", help="some of the six tasks; all by default")
    args = parser.parse_args()
    base, tasks = minilm(), tasks_of_seven()
    if args.tasks:
        tasks = [task for task in tasks if task.name in args.tasks]
    if args.quick:
        tasks = tasks[:2]
    rows = sample(tasks, args.data, "train", 32 if args.quick else args.rows, seed=0) if args.rows else {}
    table = timed_cases(base, tasks, rows, args.depth, rounds=3 if args.quick else args.rounds) if rows else []
    more = []
    if args.score_rows and not args.quick:
        for seed in args.score_seeds:
            more += scores(base, tasks, args.data, args.score_depth, train_rows=args.score_rows, epochs=3, seed=seed)
    finish(args.out, table, scores=more, data="real" if args.data.is_dir() else "builtin")


if __name__ == "__main__":
    main()
