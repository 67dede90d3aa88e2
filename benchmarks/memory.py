"""What an expert costs in the default recipe: numbers, bytes on disk and bytes in memory, computed and measured.

Goal: each further expert costs under 1 % of the base, on disk and in memory. ``ours_ms`` is not a time here but a
share: bytes of one expert over bytes of the base.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from _common import arguments, finish
from _training import minilm, sample, tasks_of_seven
from dynamorouter.config.compose import compose
from dynamorouter.model.base.base import Base
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.lora.mount import mount
from dynamorouter.routing.config import RouterConfig
from dynamorouter.runs.build import expert_plan
from dynamorouter.system.library import Library
from dynamorouter.system.router import RouterRows, fit_system_router
from dynamorouter.system.system import System
from dynamorouter.training.experts import fresh_expert


def memory_of(base: Base) -> int:
    """Count the bytes of all tensors that a base with its banks holds."""
    tensors = [*base.model.parameters(), *base.model.buffers()]
    return sum(
        storage.nbytes() for storage in {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}.values()
    )


def grow(base: Base, expert: Expert, counts: tuple[int, int]) -> float:
    """Measure the bytes that one further expert adds to the banks and heads."""
    sizes = []
    for count in counts:
        experts = [dataclasses.replace(expert, name=f"{expert.name}{i}") for i in range(count)]
        heads = count * sum(p.nbytes for p in expert.head.parameters())
        with mount(base, experts):
            sizes.append(memory_of(base) + heads)
    return (sizes[1] - sizes[0]) / (counts[1] - counts[0])


def main() -> None:
    """Run the benchmark."""
    parser = arguments("memory", __doc__ or "")
    args = parser.parse_args()
    config = compose("quickstart")
    base, tasks = minilm(), tasks_of_seven()
    whole = memory_of(base)
    weights = Path(base.spec.locate()) / "model.safetensors"
    experts = [fresh_expert(base, expert_plan(config, task), seed=0) for task in tasks]
    measured = {expert.name: grow(base, expert, (2, 12)) for expert in experts}
    system = System({base.spec.name: base}, experts, None, router_base=base.spec.name)
    train = sample(tasks, Path("/nonexistent"), "train", 40, seed=0)
    skills, _ = fit_system_router(system, RouterConfig(epochs=1).model_dump(), RouterRows(train, {}), seed=0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        system.save(folder, skills=skills)
        library = Library(Path(folder) / "experts")
        for expert in experts:
            shares = {
                "parameters": expert.parameters() / base.parameters(),
                "memory": measured[expert.name] / whole,
                "disk": library.bytes(expert.name) / weights.stat().st_size,
            }
            for kind, share in shares.items():
                rows.append(
                    {
                        "case": f"{expert.name}: {kind}, share of the base",
                        "ours_ms": share,
                        "base_ms": 1.0,
                        "peers_ms": {},
                        "over_base": share,
                        "over_best_peer": None,
                        "limit": 0.01,
                        "within": share <= 0.01,
                    }
                )
    finish(
        args.out,
        rows,
        base_bytes_in_memory=whole,
        base_bytes_on_disk=weights.stat().st_size,
        expert_bytes_in_memory=measured,
    )


if __name__ == "__main__":
    main()
