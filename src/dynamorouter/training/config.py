"""How experts, fusions and router are trained."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dynamorouter.model.lora.config import LoraConfig
from dynamorouter.utils.options import (
    PATIENCE,
    TRAIN_SAMPLES,
    WARMUP,
    Alias,
    BatchRows,
    Count,
    Epochs,
    OptimConfig,
    Options,
    Rate,
    Rows,
    Share,
    Size,
    Weight,
    changes_of,
)

TRAIN_ROWS = 5000
JointGates = Literal["hard", "soft"]
JointOrder = Literal["together", "alternating"]


class CacheConfig(Options):
    """Where the trunk's outputs are kept between epochs."""

    where: Literal["memory", "disk", "off"] = "memory"
    """In memory, in files beside the run, or computed anew each time."""
    limit_mb: Count = 2048
    """Most it may hold, in MiB; what is over is computed anew."""


class FusionConfig(Options):
    """AdapterFusion for one task: attention over the outputs of frozen experts, and a head of its own."""

    sources: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """Tasks whose experts are mixed; ``null`` for all on the task's base."""
    epochs: Epochs = 3
    """Epochs over the task's train rows; the best one is kept."""
    learning_rate: Rate = 1e-3
    """Peak learning rate of attention and head; it falls linearly."""
    key_width: Count = 16
    """Width of queries and keys."""
    batch_rows: BatchRows = 32
    """Rows per step."""

    @model_validator(mode="after")
    def _different(self) -> Self:
        if self.sources is not None and len(set(self.sources)) != len(self.sources):
            raise ValueError("a task is listed twice under 'sources'")
        return self


class ExpertConfig(OptimConfig, LoraConfig):
    """The expert phase: LoRA factors and heads of all tasks, trained side by side."""

    trunk_depth: Size = 3
    """Number of lowest blocks without experts, shared by all tasks; 0 puts experts everywhere."""
    trunk_cache: CacheConfig = CacheConfig()
    """Where the trunk's outputs are kept between epochs."""
    train_rows: Annotated[Rows | dict[str, Rows], TRAIN_SAMPLES] = TRAIN_ROWS
    """Rows per task; ``null`` is all; or a mapping of task names and ``default`` to rows, 5000 where neither is."""
    batch_rows: BatchRows = 16
    """Rows of one task per optimizer step of its expert; micro-batches stay full whatever it is."""
    tokens_per_batch: Annotated[Count, Alias("max_tokens_per_batch")] = 4096
    """Most tokens in one forward pass, padding included."""
    head_learning_rate: Rate | None = None
    """Peak learning rate of the heads; ``null`` takes ``learning_rate``."""
    warmup: Annotated[Share, WARMUP] = 0.06
    """Share of a task's steps over which its learning rate rises; it falls linearly after that."""
    clip: Annotated[Rate | None, Alias("max_grad_norm")] = 1.0
    """Largest gradient norm per expert; ``null`` clips nothing."""
    accumulation: Annotated[Count, Alias("gradient_accumulation_steps")] = 1
    """Batches whose gradients are added up for one step."""
    patience: Annotated[Size, PATIENCE] = 2
    """Epochs without improvement after which a task stops; 0 never stops early."""
    min_delta: Annotated[Weight, Alias("early_stopping_threshold")] = 0.0
    """Smallest gain of the primary metric that counts as improvement."""
    select_by: Annotated[Literal["loss", "metric"], Alias("metric_for_best_model")] = "loss"
    """What decides on the best epoch of an expert that generates: its held-out loss, or its primary metric."""
    packing: bool | Literal["auto"] = "auto"
    """Whether several short rows of an expert on a decoder share a sequence; ``auto`` does so on a GPU."""
    loss_weights: Literal["fixed", "uncertainty"] = "fixed"
    """Weigh the tasks' losses by ``fixed_weights``, or by learned uncertainty."""
    fixed_weights: dict[str, Weight] = Field(default_factory=dict)
    """Weight of each task's loss, 1 where absent."""
    checkpoint_every: Count = 200
    """Optimizer steps between checkpoints."""
    fusion: dict[str, FusionConfig] = Field(default_factory=dict)
    """AdapterFusion by target task: kept where it answers held-out rows as well as the task's own expert, or better."""

    @property
    def head_rate(self) -> float:
        """Peak learning rate of the heads."""
        return self.learning_rate if self.head_learning_rate is None else self.head_learning_rate

    @property
    def step_rows(self) -> int:
        """Rows of one task per optimizer step, accumulation included."""
        return self.batch_rows * self.accumulation

    @property
    def lora(self) -> LoraConfig:
        """The shape of the experts' factors."""
        return LoraConfig(**{name: getattr(self, name) for name in LoraConfig.model_fields})

    def rows_for(self, task: str) -> int | None:
        """Return the number of train rows of ``task``, or ``None`` for all."""
        if isinstance(self.train_rows, dict):
            return self.train_rows.get(task, self.train_rows.get("default", TRAIN_ROWS))
        return self.train_rows


class JointConfig(OptimConfig):
    """The joint phase: router and experts trained together."""

    enabled: bool = False
    """Whether ``run`` goes through it."""
    train_rows: Annotated[Rows, TRAIN_SAMPLES] = 1000
    """Rows per task; ``null`` is all."""
    epochs: Epochs = 1
    """Epochs over the rows."""
    batch_rows: BatchRows = 32
    """Rows of all tasks together per step."""
    learning_rate: Rate = 2e-4
    """Peak learning rate of factors and heads."""
    router_learning_rate: Rate | None = None
    """Peak learning rate of the router; ``null`` takes ``learning_rate``."""
    warmup: Annotated[Share, WARMUP] = 0.06
    """Share of the steps over which the learning rate rises."""
    gates: JointGates = "hard"
    """Each row through its own task's expert, or through the router's mixture."""
    order: JointOrder = "together"
    """Router and experts step in the same rounds, or in turns."""
    router_loss_weight: Weight = 1.0
    """Weight of the router's loss beside the tasks' losses."""

    @property
    def router_rate(self) -> float:
        """Peak learning rate of the router."""
        return self.learning_rate if self.router_learning_rate is None else self.router_learning_rate

    def applied_to(self, expert: ExpertConfig, *, tasks: int) -> ExpertConfig:
        """Return how an expert is trained on in this phase, as one of ``tasks`` that share a step."""
        changes = {
            **self.model_dump(include={"epochs", "learning_rate", "weight_decay", "warmup"}),
            "head_learning_rate": None,
            "batch_rows": max(1, self.batch_rows // tasks),
            "accumulation": 1,
        }
        return expert.model_copy(update=changes)


PER_TASK = (
    "rank",
    "alpha",
    "rslora",
    "dropout",
    "targets",
    "trunk_depth",
    "epochs",
    "learning_rate",
    "head_learning_rate",
    "weight_decay",
    "warmup",
    "batch_rows",
    "patience",
    "min_delta",
    "select_by",
    "train_rows",
)
"""Settings of the expert phase that a task may have otherwise; the others are of all experts at once."""
ExpertOverrides = changes_of("ExpertOverrides", ExpertConfig, PER_TASK)
"""What one task may change of the expert phase for itself: its ``hyper``."""
