"""What routing costs: routed ``predict`` beside the same rows with their expert given, and beside the two-pass way.

The two-pass way routes with a whole pass of the bare base, as systems without a trunk do, and then answers with a
second pass. Tokenisation is part of every time and is reported apart. Goal: routing adds at most 5 % end to end, and
under 1 ms per text in batches.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from _common import arguments, finish, in_turn, row
from _training import DEFAULT_DATA, minilm, plans, sample, tasks_of_seven
from dynamorouter.model.text.tokenize import TextPair
from dynamorouter.routing.config import RouterConfig
from dynamorouter.system.router import RouterRows, fit_system_router
from dynamorouter.system.system import System
from dynamorouter.tasks.record import Record
from dynamorouter.training.experts import fresh_expert


def make_system(data: Path, *, depth: int, rows: int, layers: Sequence[int] | str) -> System:
    """Build a system of six fresh experts and a fitted router; what is timed does not depend on how good they are."""
    base, tasks = minilm(), tasks_of_seven()
    experts = [fresh_expert(base, plan, seed=0) for plan in plans(tasks, depth=depth, epochs=1)]
    system = System({base.spec.name: base}, experts, None, router_base=base.spec.name)
    settings = {**RouterConfig().model_dump(), "layers": layers, "epochs": 3}
    train = sample(tasks, data, "train", rows, seed=0)
    fit_system_router(system, settings, RouterRows(train, {}), seed=0)
    return system


def compare(name: str, system: System, two_pass: System, records: Sequence[Record], rounds: int) -> dict[str, Any]:
    """Time one list of rows all ways."""
    pairs: list[TextPair] = [(record.text, record.pair) for record in records]
    texts, seconds = [text for text, _ in pairs], [pair for _, pair in pairs]
    routed = system.predict(texts, seconds)
    chosen = [prediction.expert for prediction in routed]

    def twice() -> object:
        routes = two_pass.route(texts, seconds)
        best = [max(route, key=lambda expert: route[expert]) for route in routes]
        return two_pass.predict(texts, seconds, best)

    base = system.bases[system.router_base]
    works = {
        "base": lambda: system.predict(texts, seconds, chosen),
        "ours": lambda: system.predict(texts, seconds),
        "two passes": twice,
        "tokenisation alone": lambda: base.encoder.windows(
            pairs, max_tokens=system.engine.max_tokens, stride=system.engine.stride
        ),
    }
    times = in_turn(works, rounds=rounds)
    tokens = times.pop("tokenisation alone")
    added = statistics.median(a - b for a, b in zip(times["ours"], times["base"], strict=True)) / len(pairs)
    return row(
        name,
        times,
        limit=1.05,
        rows=len(pairs),
        added_ms_per_text=added,
        added_limit_ms=1.0,
        tokenisation_ms=statistics.median(tokens),
    )


def main() -> None:
    """Run the benchmark; ``base`` is the same ``predict`` with the expert of each row given."""
    parser = arguments("routing", __doc__ or "")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder with the real rows")
    args = parser.parse_args()
    rounds, size = (7, 8) if args.quick else (11, 32)
    fit_rows = 16 if args.quick else 50
    system = make_system(args.data, depth=3, rows=fit_rows, layers="trunk")
    two = make_system(args.data, depth=0, rows=fit_rows, layers=(6,))
    held = sample(tasks_of_seven(), args.data, "validation", size, seed=1)
    mixed = [record for i in range(size) for own in held.values() for record in own[i : i + 1]]
    short = held["sst2"][:size]
    with torch.inference_mode():
        rows = [
            compare(f"mixed batch of all six tasks, {len(mixed)} rows", system, two, mixed, rounds),
            compare(f"one task (sst2), {len(short)} rows", system, two, short, rounds),
            compare("one row at a time (sst2)", system, two, short[:1], rounds),
        ]
    rows[-1]["limit"] = None
    rows[-1].pop("within", None)
    for each in rows:
        print(
            f"{each['case']}: routing adds {each['added_ms_per_text']:.3f} ms per text; tokenisation takes "
            f"{each['tokenisation_ms'] / each['rows']:.3f} ms per text"
        )
    finish(args.out, rows)


if __name__ == "__main__":
    main()
