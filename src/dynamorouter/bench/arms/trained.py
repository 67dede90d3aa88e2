"""What one could train instead: one LoRA for all tasks, full fine-tuning, a LoRA on the rows that merges tune on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dynamorouter.bench.arms.base import Arm, arms
from dynamorouter.bench.experiment import Experiment, fresh_base, head_count
from dynamorouter.model.heads.base import Head, build_head
from dynamorouter.model.lora.config import LoraConfig
from dynamorouter.model.lora.expert import fresh_factors
from dynamorouter.model.lora.factors import Factors
from dynamorouter.model.text.trunk_cache import CacheOptions
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.record import Record
from dynamorouter.training.multitask import (
    AdapterBackbone,
    FullBackbone,
    TaskHead,
    fit_shared,
    shared_examples,
)
from dynamorouter.training.validate import Validator
from dynamorouter.utils.seeding import seeded


@arms.register("joint")
class Joint(Arm):
    """One LoRA for all tasks, as many numbers as all experts together, with a head for each task."""

    about = "one LoRA trained on all tasks at once, of all experts' ranks together, on the same rows and epochs"

    def fit(self, experiment: Experiment) -> None:
        """Train; the pass with the best mean score on the validation rows is kept."""
        rank = sum(expert.lora.rank for expert in experiment.system.experts)
        self._heads = fresh_heads(experiment, "joint")
        rows = {task: experiment.rows("train", task) for task in experiment.names}
        self._factors, scores = train_lora(
            experiment,
            wider(experiment, rank),
            self._heads,
            rows,
            validate=lambda: self._validation_score(experiment),
        )
        self.facts.parameters = factor_numbers(self._factors) + head_count(experiment.system.experts)
        self.facts.train_rows = sum(map(len, rows.values()))
        self.facts.evaluations = len(scores)
        self.facts.select = max(scores)
        self.facts.options = {"rank": rank}

    def _validation_score(self, experiment: Experiment) -> float:
        """Return the mean primary score on the validation rows, of what is in the banks."""
        gates = experiment.installed_gates()
        pairs = zip(experiment.names, self._heads, strict=True)
        return float(np.mean([experiment.validator("validation", name)(head, 0, gates=gates) for name, head in pairs]))

    def answer(self, experiment: Experiment, task: str) -> list[Answer | None]:
        """Answer through the one LoRA, under the task's own new head."""
        experiment.install_factors(self._factors, key=self)
        head = self._heads[experiment.names.index(task)]
        return list(experiment.validator("test", task).answers(head, 0, gates=experiment.installed_gates()))


@arms.register("calibration_lora")
class CalibrationLora(Arm):
    """One new LoRA of an expert's rank under the experts' heads, trained on the rows that merges are tuned on."""

    about = "one new LoRA under the experts' heads, trained on the validation rows that tuned merges may look at"

    def fit(self, experiment: Experiment) -> None:
        """Train for as many passes as the experts, with nothing held out; the last pass is taken."""
        rank = max(expert.lora.rank for expert in experiment.system.experts)
        limit = experiment.config.bench.tune_rows
        heads = [expert.head for expert in experiment.system.experts]
        rows = {task: experiment.rows("validation", task, limit) for task in experiment.names}
        self._factors, _ = train_lora(experiment, wider(experiment, rank), heads, rows, train_heads=False)
        self.facts.parameters = factor_numbers(self._factors) + head_count(experiment.system.experts)
        self.facts.train_rows = sum(map(len, rows.values()))
        self.facts.options = {"rank": rank}

    def answer(self, experiment: Experiment, task: str) -> list[Answer | None]:
        """Answer through the new LoRA, under the expert's head."""
        experiment.install_factors(self._factors, key=self)
        return experiment.answers(task)


@arms.register("full")
class FullFineTuning(Arm):
    """A copy of the base for each task, every weight trained."""

    about = "a whole copy of the base for each task, all weights trained on the experts' own rows and epochs"

    def fit(self, experiment: Experiment) -> None:
        """Count what is stored; each task is trained when it is wanted."""
        copy = sum(p.numel() for name, p in experiment.base.weights.items() if "pooler" not in name)
        self.facts.parameters = copy * len(experiment.names) + head_count(experiment.system.experts)
        self.facts.train_rows = sum(len(experiment.rows("train", task)) for task in experiment.names)
        self.facts.options = {"learning_rate": experiment.config.bench.full_learning_rate}

    def prepare(self, experiment: Experiment, task: str) -> None:
        """Train one task; the pass with the best score on the validation rows is kept."""
        settings = experiment.config.expert(task)
        expert = experiment.expert(task)
        base = fresh_base(experiment.config)
        self._head = build_head(expert.task, base.width, expert.head.options)
        self._head.initialise(seeded(experiment.seed, task, "full")).to(base.device)
        task_head = TaskHead(expert.task, self._head, experiment.rows("train", task))
        examples = shared_examples(base, [task_head])
        rates = {"learning_rate": experiment.config.bench.full_learning_rate, "head_learning_rate": settings.head_rate}

        def validator(split: str) -> Validator:
            records = experiment.rows(split, task)
            cache = CacheOptions(limit=0)
            return Validator(base, expert.task, records, depth=0, budget=settings.tokens_per_batch, cache=cache)

        select = validator("validation")
        scores = fit_shared(
            FullBackbone(base, examples),
            [task_head],
            examples,
            config=settings.model_copy(update=rates),
            seed=experiment.seed,
            validate=lambda: select(self._head, 0),
        )
        self.facts.evaluations = len(scores) * len(experiment.names)
        self._answers: list[Answer | None] = list(validator("test").answers(self._head, 0))

    def answer(self, experiment: Experiment, task: str) -> list[Answer | None]:
        """Return what the task's own copy answered."""
        return self._answers


def train_lora(
    experiment: Experiment,
    lora: LoraConfig,
    heads: Sequence[Head],
    rows: Mapping[str, Sequence[Record]],
    *,
    train_heads: bool = True,
    validate: Callable[[], float] | None = None,
) -> tuple[dict[str, Factors], list[float]]:
    """Train one LoRA that the rows of all tasks go through; returns it, and the scores after each epoch."""
    base, settings = experiment.base, experiment.config.experts
    start = fresh_factors(base, lora, seed=experiment.seed, name="one for all")
    experiment.install_factors(start)
    task_heads = [TaskHead(task, head, rows[task.name]) for task, head in zip(experiment.tasks, heads, strict=True)]
    examples = shared_examples(base, task_heads)
    limit, budget = settings.trunk_cache.limit_mb << 20, settings.tokens_per_batch
    body = AdapterBackbone(experiment.mounted, examples, depth=lora.trunk_depth, limit=limit, budget=budget)
    seed = experiment.seed
    scores = fit_shared(
        body, task_heads, examples, config=settings, seed=seed, train_heads=train_heads, validate=validate
    )
    body.cache.close()
    return {layer: experiment.mounted.banks[layer].get(0, lora.rank) for layer in start}, scores


def wider(experiment: Experiment, rank: int) -> LoraConfig:
    """Return the experts' own settings with another rank and the same scaling."""
    lora = experiment.system.experts[0].lora
    alpha = lora.scaling * (math.sqrt(rank) if lora.rslora else rank)
    return lora.model_copy(update={"rank": rank, "alpha": alpha})


def fresh_heads(experiment: Experiment, purpose: str) -> list[Head]:
    """Draw a new head for each task."""
    heads = []
    for expert in experiment.system.experts:
        head = build_head(expert.task, experiment.base.width, expert.head.options)
        heads.append(head.initialise(seeded(experiment.seed, expert.task.name, purpose)).to(experiment.base.device))
    return heads


def factor_numbers(factors: Mapping[str, Factors]) -> int:
    """Count the numbers in factors."""
    return sum(pair.a.numel() + pair.b.numel() for pair in factors.values())
