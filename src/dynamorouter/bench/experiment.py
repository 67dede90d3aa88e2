"""What the arms of one seed share: rows, the trained system, and its base, over which they mount what they try.

Letters: B batch, E experts, N rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dynamorouter.config.schema import Config
from dynamorouter.data.prepare import PreparedData
from dynamorouter.errors import DataError, one_of
from dynamorouter.metrics.base import get_metric, row_statistics
from dynamorouter.metrics.bootstrap import Array
from dynamorouter.model.base.base import Base
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.lora.factors import Factors
from dynamorouter.model.lora.mount import Mounted, mount
from dynamorouter.model.text.passes import Gates
from dynamorouter.model.text.trunk_cache import CacheOptions
from dynamorouter.runs.run import Run
from dynamorouter.system.library import Library
from dynamorouter.system.system import System
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task
from dynamorouter.training.multitask import one_for_all
from dynamorouter.training.validate import Validator
from dynamorouter.utils.devices import pick_device, pick_dtype

FLOAT = 4
"""Bytes of a stored number."""


@dataclass(slots=True)
class Experiment:
    """What the arms of one seed share.

    Attributes:
        config: the settings of this seed's run.
        system: trained on this seed.
        data: the prepared rows, the same for all seeds.
    """

    config: Config
    system: System
    data: PreparedData
    seen_rows: dict[str, int] = field(default_factory=dict)
    _rows: dict[tuple[str, str], list[Record]] = field(default_factory=dict)
    _validators: dict[tuple[str, str, int], Validator] = field(default_factory=dict)
    _installed: object = None
    _mounted: Mounted | None = None

    @staticmethod
    def open(config: Config, run: Path, data: PreparedData) -> Experiment:
        """Load a seed's system, as its router's phase left it."""
        system = System.load(
            Run(config, run).phase("router"),
            device=config.device,
            precision=config.precision,
            tokens_per_batch=config.experts.tokens_per_batch,
        )
        return Experiment(config, system, data)

    @property
    def base(self) -> Base:
        """The base of all experts; what an arm has installed lies over the system's own experts."""
        return self.system.bases[self.system.router_base]

    @property
    def seed(self) -> int:
        """The seed."""
        return self.config.seed

    @property
    def tasks(self) -> list[Task]:
        """The tasks, in the order of the experts."""
        return [expert.task for expert in self.system.experts]

    @property
    def names(self) -> list[str]:
        """The names of the tasks."""
        return [task.name for task in self.tasks]

    def expert(self, task: str) -> Expert:
        """Return the expert of a task."""
        return self.system.experts[self.names.index(task)]

    def rows(self, split: str, task: str, limit: int | None = None) -> list[Record]:
        """Return rows of one task, from the top of a split that was drawn at random.

        Of ``test``, those that the experts or the router have learned from are left out, unless ``bench.keep_seen``.

        Raises:
            DataError: all test rows have been learned from.
        """
        if (split, task) not in self._rows:
            records = self.data.split(split, task)
            if split == "test" and not self.config.bench.keep_seen:
                rows = len(records)
                records = self.system.seen.unseen(records)
                self.seen_rows[task] = rows - len(records)
                if not records:
                    raise DataError(
                        f"task {task!r}: all {rows} test rows are rows that the experts have learned from; give rows "
                        "of its own to the comparison (data=.., data.root=..), or score them all the same with "
                        "bench.keep_seen=true"
                    )
            self._rows[split, task] = records
        return self._rows[split, task][:limit]

    def seen_notes(self, task: str) -> dict[str, Any]:
        """Return how many test rows of a task were left out, and whether it is unknown what was learned from."""
        left_out, unknown = self.seen_rows.get(task, 0), self.expert(task).name in self.system.unknown_rows()
        return ({"seen_left_out": left_out} if left_out else {}) | ({"seen_unknown": True} if unknown else {})

    def install(self, experts: Sequence[Expert], *, key: object) -> None:
        """Mount experts over those of the system, unless those of this key are there."""
        installed = self._installed is key or (isinstance(key, str) and self._installed == key)
        if not installed:
            self.uninstall()
            self._mounted, self._installed = mount(self.base, experts), key

    def uninstall(self) -> None:
        """Take away what was installed, so that the system's own experts are at work again."""
        if self._mounted is not None:
            self._mounted.close()
        self._mounted, self._installed = None, None

    @property
    def mounted(self) -> Mounted:
        """What was installed last."""
        assert self._mounted is not None, "an arm asked for what is mounted before it mounted anything"
        return self._mounted

    def install_factors(self, factors: Mapping[str, Factors], *, key: object = None) -> None:
        """Install one change of the base, whichever expert it comes from."""
        template = self.system.experts[0]
        self.install([replace(template, factors=dict(factors), fusion=None)], key=object() if key is None else key)

    def installed_gates(self) -> Gates:
        """Return the gates that send every row through what ``install_factors`` put there."""
        return lambda positions: one_for_all(len(positions), self.base.device)

    def validator(self, split: str, task: str, limit: int | None = None) -> Validator:
        """Return what answers and scores rows of a task over what is installed; the trunk's outputs are kept."""
        records = self.rows(split, task, limit)
        key = (split, task, len(records))
        if key not in self._validators:
            settings = self.config.experts
            depth = min(expert.lora.trunk_depth for expert in self.system.experts)
            cache = CacheOptions(limit=(settings.trunk_cache.limit_mb << 20) // (2 * len(self.names)))
            budget = settings.tokens_per_batch
            self._validators[key] = Validator(
                self.base, self.expert(task).task, records, depth=depth, budget=budget, cache=cache
            )
        return self._validators[key]

    def answers(self, task: str, *, split: str = "test", limit: int | None = None) -> list[Answer | None]:
        """Answer a task's rows through what ``install_factors`` put there, under the task's own head."""
        return list(self.validator(split, task, limit).answers(self.expert(task).head, 0, gates=self.installed_gates()))

    def select_score(self, limit: int) -> float:
        """Return the mean over tasks of the primary score on held-out rows that choices are made on."""
        scores = []
        for task in self.tasks:
            rows = self.rows("validation", task.name, limit)
            scores.append(score_of(task, self.answers(task.name, split="validation", limit=limit), rows))
        return float(np.mean(scores))

    def digests(self) -> dict[str, str]:
        """Return 16 hexadecimal digits for each expert: its factors, its head and its card."""
        library = self.system.library
        assert library is not None
        return {name: expert_digest(library, name) for name in self.system.names}

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that name the rows of all splits."""
        sha = hashlib.sha256()
        for task in self.names:
            for split, entry in sorted(self.data.manifest["tasks"][task]["splits"].items()):
                sha.update(f"{task}/{split}/{entry['sha256']}".encode())
        return sha.hexdigest()[:16]


def fresh_base(config: Config) -> Base:
    """Load a copy of the base model of all experts, whose weights can be changed."""
    device = pick_device(config.device)
    return Base.load(config.base, device=device, dtype=pick_dtype(config.precision, device))


def check_one_base(config: Config) -> list[str]:
    """Return why these tasks cannot be compared: merges and joint training need experts of one base."""
    others = {task.base for task in config.task.values() if task.base is not None and task.base != config.base.name}
    if not others:
        return []
    return [
        f"task.*.base: the comparison merges experts of one base, but tasks name {one_of(others)} beside "
        f"{config.base.name!r}; leave those tasks out, or their base"
    ]


def expert_digest(library: Library, name: str) -> str:
    """Return 16 hexadecimal digits of an expert's weights."""
    sha = hashlib.sha256()
    for path in sorted((library.folder / name).glob("*.safetensors")):
        if path.name != "skill.safetensors":
            sha.update(path.read_bytes())
    return sha.hexdigest()[:16]


def score_of(task: Task, answers: Sequence[Answer | None], records: Sequence[Record]) -> float:
    """Return the primary score."""
    statistics = primary_numbers(task, answers, records)
    return float(get_metric(task.metrics[0]).reduce(statistics.sum(axis=0)))


def primary_numbers(task: Task, answers: Sequence[Answer | None], records: Sequence[Record]) -> Array:
    """Return the numbers of every row under the primary metric, ``(N, K)``."""
    return row_statistics(task.metrics[0], task, answers, records)


def factor_work(experiment: Experiment, experts: Sequence[Expert]) -> float:
    """Return the multiplications of experts' factors for a token over those of the base's blocks."""
    base = experiment.base
    weights = [p for name, p in base.weights.items() if name.startswith(f"{base.blocks_name}.") and p.dim() > 1]
    return factor_count(experts) / sum(p.numel() for p in weights)


def factor_count(experts: Sequence[Expert]) -> int:
    """Count the numbers in the factors of experts, heads left out."""
    return sum(f.a.numel() + f.b.numel() for expert in experts for f in expert.factors.values())


def head_count(experts: Sequence[Expert]) -> int:
    """Count the numbers in the heads of experts."""
    return sum(p.numel() for expert in experts for p in expert.head.parameters())
