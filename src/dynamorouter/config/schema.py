"""The tree of settings: every key, its type, its default, its unit.

`dynamorouter.config.compose.compose` fills this tree from YAML groups, a file and overrides. A key that is not here is
an error. Layers and functions further down never see these classes: builders hand them plain values.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, Field, model_validator

from dynamorouter.config.bench import BenchConfig
from dynamorouter.data.complexity.config import ComplexityConfig
from dynamorouter.data.config import DataConfig
from dynamorouter.model.base.config import BaseSpec
from dynamorouter.routing.config import RouterConfig
from dynamorouter.tasks.task import Task
from dynamorouter.training.config import ExpertConfig, ExpertOverrides, JointConfig
from dynamorouter.utils.explain import Branch, Inside
from dynamorouter.utils.options import FOR_DIGEST, Alias, Count, Options, Rows, Size
from dynamorouter.utils.tracking import TrackingConfig


class EvaluationConfig(Options):
    """Held-out rows per task and what they decide."""

    select_rows: Annotated[Count, Alias("max_eval_samples"), Alias("validation_rows")] = 500
    """Rows for early stopping and choices."""
    calibrate_rows: Annotated[Count, Alias("calibration_rows")] = 500
    """Rows for the router's temperature."""
    report_rows: Annotated[Rows, Alias("max_predict_samples"), Alias("test_rows")] = 1000
    """Rows for the report; ``null`` is all."""
    bootstrap: Count = 1000
    """Resamples for confidence intervals."""


class _Overrides(Options):
    """The part of a task that the training room knows."""

    hyper: ExpertOverrides  # type: ignore[valid-type]


def _with_checked_hyper(task: Task) -> Task:
    """Check what a task changes of the expert phase, which a task by itself holds as plain values."""
    overrides = _Overrides.model_validate({"hyper": task.hyper})
    return task.model_copy(update=overrides.model_dump(mode="json", exclude_none=True))


RunTask = Annotated[Task, AfterValidator(_with_checked_hyper), Inside({"hyper": ExpertOverrides})]
"""A task whose changes of the expert phase are checked."""


class Config(Options):
    """Everything that a run depends on."""

    recipe: str
    """The recipe that the rest was composed from."""
    seed: Size = 0
    """Seed of every random choice."""
    search_path: tuple[str, ...] = ()
    """Folders laid out like ``conf/`` (``task/``, ``base/``, ``router/``, ``recipe/``) with choices of one's own."""
    task: Annotated[dict[str, RunTask], Field(min_length=1)]
    """The tasks by name, in the order of their experts."""
    base: BaseSpec
    """The base that routing reads, and that of the experts that name no other."""
    bases: dict[str, BaseSpec] = Field(default_factory=dict)
    """Further bases by name."""
    data: DataConfig = DataConfig()
    """Where rows come from."""
    experts: ExpertConfig = ExpertConfig()
    """The expert phase."""
    router: RouterConfig = RouterConfig()
    """The router and its phase."""
    joint: JointConfig = JointConfig()
    """The joint phase."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out rows."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; ``auto`` takes a CUDA device when there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the forward pass; ``auto`` is fp32 on a CPU and bf16 or fp16 on a GPU."""
    tracking: TrackingConfig = TrackingConfig()
    """What is written beside the log."""
    bench: BenchConfig = BenchConfig()
    """The comparison of arms, where ``run`` is one, and what it measures."""
    complexity: ComplexityConfig | None = None
    """How rows get their tier, where the tasks are tiers of one instruction data set; ``null`` where they are not."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        for key, task in self.task.items():
            if task.name != key:
                raise ValueError(f"task.{key}.name is {task.name!r}; a task's name is its key, {key!r}")
        return self

    def expert(self, task: str) -> ExpertConfig:
        """Return the expert phase as ``task`` sees it: its ``hyper`` applied, ``train_rows`` one number or ``None``."""
        changes = {"train_rows": self.experts.rows_for(task), **self.task[task].hyper}
        return ExpertConfig.model_validate({**self.experts.model_dump(), **changes})

    def base_of(self, task: Task) -> BaseSpec:
        """Return the base of a task's expert: the default one, or that which the task names."""
        return self.base if task.base in (None, self.base.name) else self.bases[str(task.base)]

    def bases_in_use(self) -> list[BaseSpec]:
        """Return the default base, and those that tasks name, each once."""
        return list({base.name: base for base in (self.base, *map(self.base_of, self.task.values()))}.values())

    def to_json(self) -> dict[str, Any]:
        """Return the tree as plain JSON values."""
        return self.model_dump(mode="json")

    def for_digest(self) -> dict[str, Any]:
        """Return the tree as plain JSON values for digests, without later settings that have their defaults."""
        return self.model_dump(mode="json", context=FOR_DIGEST)

    def to_yaml(self) -> str:
        """Return the tree as YAML that ``compose(config_file=...)`` and ``load`` read back unchanged."""
        return str(yaml.safe_dump(self.to_json(), sort_keys=False, allow_unicode=True, width=120))

    def digest(self) -> str:
        """Return 16 hexadecimal digits that change with any setting: the ``config_hash`` of reports."""
        canonical = json.dumps(self.for_digest(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


ROOT = Branch(Config)
"""What the whole tree may hold."""
TASK = Branch(Task, inside={"hyper": ExpertOverrides})
"""What a task may hold."""
