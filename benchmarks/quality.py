"""How good: routers beside their baselines on real rows, and the ablations in one table.

``--run DIR`` is a finished run of ``seven``: its rows and its experts are used. Routers: the task MLP (pairs given as
pairs, and as one run of text), majority, TF-IDF, kNN, centroids, Arrow, [CLS] of the last layer, random. Systems:
dynamic routing, static routing, router off (a uniform mixture under each row's own head). Training ablations, on fewer
rows: trunk depth 0, 2, 3, 4, full fine-tuning, and the same LoRA by PEFT.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from _common import arguments, machine, versions
from _training import (
    DEFAULT_DATA,
    Packed,
    by_trainer,
    examine,
    mean,
    minilm,
    plans,
    sample,
    tasks_of_seven,
    timed,
)
from dynamorouter.data.prepare import PreparedData, load_prepared
from dynamorouter.evaluate import score_system
from dynamorouter.routing_phase import RouterRows, fit_system_router
from dynamorouter.settings import RouterSettings
from dynamorouter.system import System
from dynamorouter.tasks.metrics import score

ROUTERS: dict[str, dict[str, Any]] = {
    "task MLP": {},
    "task MLP, masked mean": {"pooling": "mean"},
    "[CLS] of the last layer": {"layers": (6,), "pooling": "cls", "join_pairs": 0.0},
    "TF-IDF + logistic regression": {"kind": "tfidf", "layers": ()},
    "kNN": {"kind": "knn", "pooling": "mean"},
    "centroids": {"kind": "centroids", "pooling": "mean"},
    "Arrow": {"kind": "arrow", "layers": (3,)},
    "static (majority)": {"kind": "static", "layers": ()},
    "random": {"kind": "random", "layers": ()},
}


def routers(system: System, data: PreparedData, expert_rows: int) -> list[dict[str, Any]]:
    """Fit every router on the run's router rows and measure it on the report rows, both ways of giving pairs."""
    names = system.names
    train = {n: data.split("router", n) + data.split("train", n)[:expert_rows] for n in names}
    calibrate = {n: data.split("calibrate", n) for n in names}
    report = [(i, record) for i, n in enumerate(names) for record in data.split("report", n)]
    true = np.array([i for i, _ in report])
    found = []
    for label, changes in ROUTERS.items():
        settings = {**RouterSettings().model_dump(), **changes}
        fit_system_router(system, settings, RouterRows(train, calibrate), seed=0)
        row: dict[str, Any] = {"router": label}
        for how in ("pairs", "joined"):
            texts = [r.text if how == "pairs" or r.pair is None else f"{r.text} {r.pair}" for _, r in report]
            pairs = [r.pair if how == "pairs" else None for _, r in report]
            routes = system.route(texts, pairs)
            best = np.array([max(range(len(names)), key=lambda e, r=route: r[names[e]]) for route in routes])
            row[how] = float((best == true).mean())
        found.append(row)
        print(row, flush=True)
    return found


def systems(folder: Path, data: PreparedData) -> dict[str, Any]:
    """Compare dynamic routing, static routing and no router, by mean headline score over tasks."""
    system = System.load(folder)
    records = {name: data.split("report", name) for name in system.names}
    dynamic = score_system(system, records, resamples=200)
    off = {}
    for i, name in enumerate(system.names):
        answers: list[Any] = [None] * len(records[name])
        rows = [(record.text, record.pair) for record in records[name]]
        for positions, chunk in system.chunks(rows):
            count = len(system.experts)
            mixture = (
                torch.arange(count).expand(len(chunk), -1),
                torch.full((len(chunk), count), 1 / count),
            )
            for position, answer in zip(
                positions, system.answer_chunk(chunk, [i] * len(chunk), mixture=mixture), strict=True
            ):
                answers[position] = answer
        task = system.experts[i].task
        off[name] = score(task, answers, records[name], metrics=[task.metrics[0]])[task.metrics[0]]
    oracle = {name: row["oracle"] for name, row in dynamic["tasks"].items()}
    routed = {name: row["routed"] for name, row in dynamic["tasks"].items()}
    static = {name: oracle[name] if name == system.names[0] else 0.0 for name in oracle}
    means = {"oracle": oracle, "dynamic": routed, "static": static, "router off, own head": off}
    return {"by_task": means, "mean": {name: mean(list(values.values())) for name, values in means.items()}}


def ablations(data: Path, *, rows: int, held: int, epochs: int) -> list[dict[str, Any]]:
    """Train the same rows at several trunk depths, by full fine-tuning, and by PEFT."""
    base, tasks = minilm(), tasks_of_seven()
    train = sample(tasks, data, "train", rows, seed=0)
    test = sample(tasks, data, "validation", held, seed=0)
    found = []
    for depth in (0, 2, 3, 4):
        packed = Packed.of(base, plans(tasks, depth=depth, epochs=epochs), train)
        trainees, seconds = timed(packed.train)
        scores = {t.name: examine(base, t.plan.task, test[t.name], t) for t in trainees}
        found.append({"arm": f"packed LoRA, trunk_depth {depth}", "scores": scores, "seconds": seconds})
        print(found[-1], flush=True)
    packed = Packed.of(base, plans(tasks, depth=0, epochs=epochs), train)
    for arm, kind in (("LoRA by PEFT + Trainer, all layers", "lora"), ("full fine-tuning by Trainer", "full")):
        scores, seconds = {}, 0.0
        for i, task in enumerate(tasks):
            trained, taken = timed(lambda i=i, kind=kind: by_trainer(packed, i, layers=kind))
            seconds += taken
            scores[task.name] = examine(base, task, test[task.name], trained)
        found.append({"arm": arm, "scores": scores, "seconds": seconds})
        print(found[-1], flush=True)
    for row in found:
        row["mean"] = mean(list(row["scores"].values()))
    return found


def main() -> None:
    """Run whatever was asked for, and merge it into what is there."""
    parser = arguments("quality", __doc__ or "")
    parser.add_argument("--run", type=Path, help="a finished run of seven")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--rows", type=int, default=300, help="train rows per task in the ablations; 0 for none")
    parser.add_argument("--held", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    out: Path = args.out
    result: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {}
    if args.run:
        data = load_prepared(args.run / "data")
        system = System.load(args.run / "system")
        result["systems"] = systems(args.run / "system", data)
        result["routers"] = routers(system, data, 100 if args.quick else 2000)
    if args.rows:
        rows, held = (32, 50) if args.quick else (args.rows, args.held)
        result["ablations"] = ablations(args.data, rows=rows, held=held, epochs=1 if args.quick else args.epochs)
        result["ablation_rows"] = {"train": rows, "held": held}
    table = Table("what", "value", "by task")
    for row in result.get("routers", []):
        table.add_row(f"router: {row['router']}", f"pairs {row['pairs']:.4f}, joined {row['joined']:.4f}", "")
    for name, value in result.get("systems", {}).get("mean", {}).items():
        table.add_row(f"system: {name}", f"{value:.4f}", "")
    for row in result.get("ablations", []):
        table.add_row(row["arm"], f"{row['mean']:.4f}", ", ".join(f"{k} {v:.3f}" for k, v in row["scores"].items()))
    Console(width=160).print(table)
    result |= {"versions": versions(), "machine": machine()}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
