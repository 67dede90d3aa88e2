"""How good: routers beside their baselines on real rows, and the ablations in one table.

``--run DIR`` is a finished run of ``seven``: its rows and its experts are used. Routers: the task MLP (pairs given as
pairs, and as one run of text), majority, TF-IDF, kNN, centroids, Arrow, [CLS] of the last layer, random. Systems:
dynamic routing, static routing, router off (a uniform mixture under each row's own head). Training ablations, on fewer
rows: trunk depth 0, 2, 3, 4, full fine-tuning, and the same LoRA by PEFT.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
)
from dynamorouter.data.prepare import PreparedData, load_prepared
from dynamorouter.evaluation.score import score_system
from dynamorouter.inference.policy import Assignment
from dynamorouter.metrics.base import score
from dynamorouter.model.text.batching import token_batches
from dynamorouter.model.text.tokenize import TextPair
from dynamorouter.routing.base import Router, RouterInput
from dynamorouter.routing.config import RouterConfig
from dynamorouter.routing.options import router_options
from dynamorouter.routing.pooling import to_pseudo_tokens
from dynamorouter.routing.serialization import build
from dynamorouter.system.system import System
from dynamorouter.tasks.record import Record
from dynamorouter.training.router import fit_router, pooled_by

ROUTERS: dict[str, dict[str, Any]] = {
    "task MLP": {},
    "task MLP, masked mean alone": {"pooling": "mean"},
    "task MLP, no pairs joined in training": {"join_pairs": 0.0},
    "[CLS] of the last layer": {"layers": (6,), "pooling": "cls", "join_pairs": 0.0},
    "TF-IDF + logistic regression": {"kind": "tfidf", "layers": ()},
    "kNN": {"kind": "knn", "pooling": "mean"},
    "centroids": {"kind": "centroids", "pooling": "mean"},
    "Arrow": {"kind": "arrow", "layers": (3,)},
    "static (majority)": {"kind": "static", "layers": ()},
    "random": {"kind": "random", "layers": ()},
}


Labelled = tuple[list[RouterInput], list[int]]


def read(system: System, rows: Sequence[tuple[int, Record]], *, joined: bool) -> Labelled:
    """Run the bare base once over rows and keep every layer, for all routers to read."""
    base = system.bases[system.router_base]
    texts: list[TextPair] = [
        (f"{r.text} {r.pair}", None) if joined and r.pair is not None else (r.text, r.pair) for _, r in rows
    ]
    windows = base.encoder.windows(texts, max_tokens=system.engine.max_tokens, stride=system.engine.stride)
    first = [window for window in windows if window.part == 0]
    layers = range(base.depth + 1)
    batches, targets = [], []
    with torch.inference_mode():
        for group in token_batches([len(window) for window in first], budget=4096):
            batch = base.encoder.collate([first[i].encoding for i in group], base.device)
            states = base.forward_to(batch, base.depth, keep=layers)
            batches.append(RouterInput(states=states, mask=batch.mask, texts=[texts[i] for i in group]))
            targets += [rows[i][0] for i in group]
    return batches, targets


def seen_by(router: Router, batches: Sequence[RouterInput]) -> list[RouterInput]:
    """Leave only what a router reads, pooled where it pools."""
    pooling = pooled_by(router)
    own = [
        RouterInput(states={layer: b.states[layer] for layer in router.layers}, mask=b.mask, texts=b.texts)
        for b in batches
    ]
    return [to_pseudo_tokens(batch, pooling) for batch in own] if pooling else own


def accuracy(router: Router, batches: Sequence[RouterInput], targets: Sequence[int]) -> float:
    """Return the share of rows that are sent to their own expert."""
    best = torch.cat([router.route(batch).experts[:, 0].cpu() for batch in seen_by(router, batches)])
    return float((best == torch.tensor(targets)).double().mean())


def routers(system: System, data: PreparedData, count: int) -> list[dict[str, Any]]:
    """Fit every router on ``count`` router rows a task and measure it on as many test rows, pairs given both ways."""

    def rows(split: str) -> list[tuple[int, Record]]:
        return [(i, record) for i, name in enumerate(system.names) for record in data.split(split, name)[:count]]

    base = system.bases[system.router_base]
    train = read(system, rows("router"), joined=False)
    runs = read(system, [(i, r) for i, r in rows("router") if r.pair is not None], joined=True)
    held = {"pairs": read(system, rows("test"), joined=False), "joined": read(system, rows("test"), joined=True)}
    found = []
    assert system.router is not None
    own: dict[str, Any] = {"router": "the run's own, after its joint phase", "rows_per_task": None}
    for how, (batches, targets) in held.items():
        own[how] = accuracy(system.router, batches, targets)
    found.append(own)
    for label, changes in ROUTERS.items():
        settings = {**RouterConfig().model_dump(), "layers": (0, 1, 2, 3), **changes}
        kind = settings["kind"]
        options = router_options(kind, settings)
        reader = build(kind, options)
        given = [(seen_by(reader, train[0]), train[1])]
        if settings["join_pairs"]:
            given.append((seen_by(reader, runs[0]), runs[1]))
        router = fit_router(kind, options, base, system.experts, given, None, seed=0)
        row: dict[str, Any] = {"router": label, "rows_per_task": count}
        for how, (batches, targets) in held.items():
            row[how] = accuracy(router, batches, targets)
        found.append(row)
        print(row, flush=True)
    return found


def systems(folder: Path, data: PreparedData, count: int) -> dict[str, Any]:
    """Compare dynamic routing, static routing and no router, by mean primary score over tasks."""
    system = System.load(folder)
    records = {name: data.split("test", name)[:count] for name in system.names}
    dynamic = score_system(system, records, resamples=200)
    off = {}
    for i, name in enumerate(system.names):
        answers: list[Any] = [None] * len(records[name])
        rows = [(record.text, record.pair) for record in records[name]]
        for positions, chunk in system.engine.chunks(rows):
            count = len(system.experts)
            mixture = (
                torch.arange(count).expand(len(chunk), -1),
                torch.full((len(chunk), count), 1 / count),
            )
            assignment = Assignment.fixed([i] * len(chunk), mixture)
            for position, answer in zip(positions, system.engine.answer(chunk, assignment), strict=True):
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
        learners = packed.train()
        scores = {t.name: examine(base, t.plan.task, test[t.name], t) for t in learners}
        found.append({"arm": f"packed LoRA, trunk_depth {depth}", "scores": scores})
        print(found[-1], flush=True)
    packed = Packed.of(base, plans(tasks, depth=0, epochs=epochs), train)
    for arm, kind in (("LoRA by PEFT + Trainer, all layers", "lora"), ("full fine-tuning by Trainer", "full")):
        scores = {}
        for i, task in enumerate(tasks):
            trained, _ = by_trainer(packed, i, layers=kind)
            scores[task.name] = examine(base, task, test[task.name], trained)
        found.append({"arm": arm, "scores": scores})
        print(found[-1], flush=True)
    for row in found:
        row["mean"] = mean(list(row["scores"].values()))
    return found


def main() -> None:
    """Run whatever was asked for, and merge it into what is there."""
    parser = arguments("quality", __doc__ or "")
    parser.add_argument("--run", type=Path, help="a finished run of seven")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--router-rows", type=int, default=300, help="rows per task that the routers are compared on")
    parser.add_argument("--rows", type=int, default=300, help="train rows per task in the ablations; 0 for none")
    parser.add_argument("--held", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    out: Path = args.out
    result: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {}
    if args.run:
        data = load_prepared(args.run / "data")
        system = System.load(args.run / "system")
        count = 30 if args.quick else args.router_rows
        result["systems"] = systems(args.run / "system", data, count)
        result["routers"] = routers(system, data, count)
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
