"""Packed training beside PEFT with Hugging Face's Trainer, one task after another, on the six real tasks.

Both sides get the same tokenised rows, epochs, rows per step, learning rates and no dropout; the Trainer groups rows by
length. Goals: 1.2 times faster with experts in all layers, 2.5 times over three epochs with the trunk cached, at mean
scores within one point; on a GPU 2 and 4 times. ``over_best_peer`` is our time over the peer's: 0.8 is 1.25 times
faster.
"""

from __future__ import annotations

import sys
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


def scores(base: Any, tasks: Any, data: Path, *, train_rows: int, held_rows: int, epochs: int, seed: int) -> list[Any]:
    """Train both ways on more rows, once, and score both on held-out rows."""
    rows = sample(tasks, data, "train", train_rows, seed=seed)
    held = sample(tasks, data, "validation", held_rows, seed=seed)
    found = []
    for depth in (0, 3):
        packed = Packed.of(base, plans(tasks, depth=depth, epochs=epochs), rows, seed=seed)
        trainees, ours_s = timed(packed.train)
        ours = {t.name: examine(base, t.plan.task, held[t.name], t) for t in trainees}
        peers_s, peers = 0.0, {}
        for i, task in enumerate(tasks):
            trained, seconds = by_trainer(packed, i, layers="lora")
            peers_s += seconds
            peers[task.name] = examine(base, task, held[task.name], trained)
            print(f"depth {depth} {task.name}: ours {ours[task.name]:.3f}, PEFT {peers[task.name]:.3f}", flush=True)
        found.append(
            {
                "trunk_depth": depth,
                "train_rows": train_rows,
                "held_rows": held_rows,
                "epochs": epochs,
                "seed": seed,
                "ours": ours,
                "peft": peers,
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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=48, help="rows per task in the timed trainings")
    parser.add_argument("--depth", type=int, nargs="+", default=[3, 4], help="trunk depths of the cached cases")
    parser.add_argument("--score-rows", type=int, default=0, help="rows per task in scored trainings; 0 for none")
    args = parser.parse_args()
    base, tasks = minilm(), tasks_of_seven()
    if args.quick:
        tasks = tasks[:2]
    gpu = torch.cuda.is_available()
    rows = sample(tasks, args.data, "train", 32 if args.quick else args.rows, seed=0)
    rounds = 3 if args.quick else args.rounds
    table = []
    packed = Packed.of(base, plans(tasks, depth=0, epochs=1), rows)
    names = {"PEFT + Trainer": "lora"}
    limit = 1 / (2.0 if gpu else 1.2)
    table.append(speed("experts in all layers, one epoch", packed, names, rounds=rounds, limit=limit))
    print(table[-1]["over_best_peer"], file=sys.stderr)
    for depth in args.depth:
        packed = Packed.of(base, plans(tasks, depth=depth, epochs=3), rows)
        names = {"PEFT + Trainer, same layers": "lora", "PEFT + Trainer, all layers": "all"}
        limit = 1 / (4.0 if gpu else 2.5)
        case = f"trunk of {depth} cached, three epochs"
        table.append(speed(case, packed, names, rounds=rounds, limit=limit))
        print(table[-1]["over_best_peer"], file=sys.stderr)
    more = []
    if args.score_rows and not args.quick:
        more = scores(base, tasks, args.data, train_rows=args.score_rows, held_rows=500, epochs=3, seed=0)
    finish(args.out, table, scores=more, data="real" if args.data.is_dir() else "builtin")


if __name__ == "__main__":
    main()
