"""The tree of settings: every key, its type, its default, its unit.

`dynamorouter.config.compose` fills this tree from YAML groups, a file and overrides. A key that is not here is
an error. Layers and functions further down never see these classes: builders hand them plain values.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from dynamorouter.settings_base import Count, Rate, Rows, Settings, Share, Size, Weight
from dynamorouter.settings_bench import BenchSettings
from dynamorouter.settings_complexity import ComplexitySettings
from dynamorouter.settings_task import TaskSettings
from dynamorouter.settings_text import Kind, Packing, SelectBy

TRAIN_ROWS = 5000


class BaseSettings(Settings):
    """One frozen base model."""

    name: str
    """What experts and reports call it."""
    path: str
    """A local folder, a hub name, or ``package:MODULE/FOLDER`` for a model inside an installed package."""
    fallback: str | None = None
    """Hub name to use when ``path`` names a package that is not installed."""
    revision: str | None = None
    """Commit or tag on the hub; ``null`` for the newest."""
    pooling: Literal["cls", "mean"] = "cls"
    """How classification heads reduce the hidden states: the first position, or the masked mean."""
    kind: Kind = "auto"
    """Encoder, decoder or encoder-decoder; ``auto`` goes by the checkpoint's own config."""
    prompt: str = "plain"
    """Form in which a decoder's or encoder-decoder's router and writers read a row; an encoder reads text and pair."""


class FilterSettings(Settings):
    """Which rows are dropped before splitting, empty ones, duplicates and unknown labels always; all are counted."""

    max_chars: Count = 20_000
    """Longest text in characters."""
    max_words: Count | None = None
    """Longest text and pair together, in words; ``null`` for any."""
    skip_bad: bool = False
    """Leave broken rows out with a count instead of stopping at the first."""


class AugmentSettings(Settings):
    """Light augmentation, of train rows only."""

    copies: Size = 0
    """Noisy copies made of each train row; 0 switches it off."""
    dropout: Share = 0.05
    """Chance of each word to be dropped."""
    swap: Share = 0.05
    """Chance of each word to change places with the next."""
    noise: Share = 0.5
    """Chance of each text to lose its capitals or its final punctuation."""


class DataSettings(Settings):
    """Where rows come from and which are kept."""

    source: Literal["builtin", "local", "hub"] = "builtin"
    """Built-in rows, local JSONL, CSV, TSV or Parquet, or the Hugging Face hub."""
    root: str | None = None
    """Folder with one folder per task, for ``source: local``."""
    filters: FilterSettings = FilterSettings()
    """Which rows are dropped."""
    leaks: Literal["drop", "fail"] = "drop"
    """What happens when a validation row is in train: drop it from train and count it, or stop."""
    when_short: Literal["shrink", "overlap", "fail"] = "shrink"
    """With too few train rows: shrink all parts, let router and joint rows overlap with the experts', or stop."""
    augment: AugmentSettings = AugmentSettings()
    """Augmentation of train rows."""

    @model_validator(mode="after")
    def _root(self) -> Self:
        if self.source == "local" and not self.root:
            raise ValueError("data.source is 'local' but data.root is not set; add data.root=FOLDER")
        return self


class CacheSettings(Settings):
    """Where the trunk's outputs are kept between epochs."""

    where: Literal["memory", "disk", "off"] = "memory"
    """In memory, in files beside the run, or computed anew each time."""
    limit_mb: Count = 2048
    """Most it may hold, in MiB; what is over is computed anew."""


class FusionSettings(Settings):
    """AdapterFusion for one task: attention over the outputs of frozen experts, and a head of its own."""

    sources: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """Tasks whose experts are mixed; ``null`` for all on the task's base."""
    epochs: Count = 3
    """Passes over the task's train rows; the best one is kept."""
    learning_rate: Rate = 1e-3
    """Peak learning rate of attention and head; it falls linearly."""
    key_width: Count = 16
    """Width of queries and keys."""
    batch_rows: Count = 32
    """Rows per step."""

    @model_validator(mode="after")
    def _different(self) -> Self:
        if self.sources is not None and len(set(self.sources)) != len(self.sources):
            raise ValueError("a task is listed twice under 'sources'")
        return self


class ExpertSettings(Settings):
    """The expert phase: LoRA factors and heads of all tasks, trained side by side."""

    rank: Count = 8
    """Width of the low-rank factors."""
    alpha: Rate = 16.0
    """Numerator of the scaling ``alpha / rank``."""
    rslora: bool = False
    """Scale by ``alpha / sqrt(rank)`` instead."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the factors' input while training."""
    targets: str | tuple[str, ...] = "all-linear"
    """``all-linear``, a regular expression over module names, or a list of names."""
    trunk_depth: Size = 3
    """Number of lowest blocks without experts, shared by all tasks; 0 puts experts everywhere."""
    trunk_cache: CacheSettings = CacheSettings()
    """Where the trunk's outputs are kept between epochs."""
    train_rows: Rows | dict[str, Rows] = TRAIN_ROWS
    """Rows per task; ``null`` is all; or a mapping of task names and ``default`` to rows, 5000 where neither is."""
    epochs: Count = 3
    """Most passes over the train rows."""
    batch_rows: Count = 16
    """Rows of one task per optimizer step of its expert; passes stay full whatever it is."""
    tokens_per_batch: Count = 4096
    """Most tokens in one forward pass, padding included."""
    learning_rate: Rate = 1e-3
    """Peak learning rate of the factors."""
    head_learning_rate: Rate | None = None
    """Peak learning rate of the heads; ``null`` takes ``learning_rate``."""
    weight_decay: Weight = 0.01
    """Decoupled weight decay."""
    warmup: Share = 0.06
    """Share of a task's steps over which its learning rate rises; it falls linearly after that."""
    clip: Rate | None = 1.0
    """Largest gradient norm per expert; ``null`` clips nothing."""
    accumulation: Count = 1
    """Batches whose gradients are added up for one step."""
    patience: Size = 2
    """Epochs without improvement after which a task stops; 0 never stops early."""
    min_delta: Weight = 0.0
    """Smallest gain of the headline metric that counts as improvement."""
    select_by: SelectBy = "loss"
    """What decides on the best pass of an expert that writes: its held-out loss, or its headline metric."""
    packing: Packing = "auto"
    """Whether several short rows of an expert on a decoder share a sequence; ``auto`` does so on a GPU."""
    loss_weights: Literal["fixed", "uncertainty"] = "fixed"
    """Weigh the tasks' losses by ``fixed_weights``, or by learned uncertainty."""
    fixed_weights: dict[str, Weight] = Field(default_factory=dict)
    """Weight of each task's loss, 1 where absent."""
    checkpoint_every: Count = 200
    """Optimizer steps between checkpoints."""
    fusion: dict[str, FusionSettings] = Field(default_factory=dict)
    """AdapterFusion by target task: kept where it answers held-out rows as well as the task's own expert, or better."""

    def rows_for(self, task: str) -> int | None:
        """Return the number of train rows of ``task``, or ``None`` for all."""
        if isinstance(self.train_rows, dict):
            return self.train_rows.get(task, self.train_rows.get("default", TRAIN_ROWS))
        return self.train_rows


class RouterSettings(Settings):
    """The router: which one, what it reads, how it is fitted."""

    kind: str = "mlp"
    """Registered name of the router."""
    layers: tuple[Size, ...] | Literal["trunk"] = "trunk"
    """Hidden states it reads: 0 is the embeddings' output, i that of block i; ``trunk`` is 0 to ``trunk_depth``."""
    pooling: Literal["attention", "cls", "last", "mean", "mean_cls", "mean_last", "mean_sum", "sum"] = "mean_cls"
    """The first position, the last, the masked mean, the mean joined with either, or learned attention."""
    hidden: Size = 128
    """Width of the hidden layer; 0 for none, a linear router."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    """Dropout on the features and on the hidden layer while fitting."""
    epochs: Count = 20
    """Most passes over the rows."""
    learning_rate: Rate = 2e-3
    """Peak learning rate."""
    weight_decay: Weight = 0.5
    """Decoupled weight decay."""
    batch_rows: Count = 128
    """Rows per step."""
    patience: Count = 5
    """Epochs without improvement after which fitting stops."""
    train_rows: Rows = 1000
    """Rows per task; ``null`` is all."""
    expert_rows: Size = 2000
    """Rows per task of the experts' own train rows that the router learns from as well; 0 for none."""
    join_pairs: Share = 0.5
    """Share of the pair rows that are also given as one run of text, so that such pairs are routed well too."""
    top_k: Count = 1
    """Experts that answer each row."""
    abstain_below: Share = 0.0
    """Confidence below which the router says that it does not know."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further options of this kind of router."""


class JointSettings(Settings):
    """The joint phase: router and experts trained together."""

    enabled: bool = False
    """Whether ``run`` goes through it."""
    train_rows: Rows = 1000
    """Rows per task; ``null`` is all."""
    epochs: Count = 1
    """Passes over the rows."""
    batch_rows: Count = 32
    """Rows of all tasks together per step."""
    learning_rate: Rate = 2e-4
    """Peak learning rate of factors and heads."""
    router_learning_rate: Rate | None = None
    """Peak learning rate of the router; ``null`` takes ``learning_rate``."""
    weight_decay: Weight = 0.01
    """Decoupled weight decay."""
    warmup: Share = 0.06
    """Share of the steps over which the learning rate rises."""
    gates: Literal["hard", "soft"] = "hard"
    """Each row through its own task's expert, or through the router's mixture."""
    order: Literal["together", "alternating"] = "together"
    """Router and experts step in the same rounds, or in turns."""
    router_loss_weight: Weight = 1.0
    """Weight of the router's loss beside the tasks' losses."""


class EvaluationSettings(Settings):
    """Held-out rows per task and what they decide."""

    select_rows: Count = 500
    """Rows for early stopping and choices."""
    calibrate_rows: Count = 500
    """Rows for the router's temperature."""
    report_rows: Rows = 1000
    """Rows for the report; ``null`` is all."""
    bootstrap: Count = 1000
    """Resamples for confidence intervals."""


class TrackingSettings(Settings):
    """What is written beside ``log.jsonl``, which always is."""

    tensorboard: bool = False
    """Write event files under ``OUT/tensorboard``."""
    wandb: bool = False
    """Log to Weights & Biases."""
    project: str = "dynamorouter"
    """Weights & Biases project."""
    name: str | None = None
    """Name of the run there; ``null`` lets the service choose."""
    mode: Literal["online", "offline"] = "offline"
    """Whether Weights & Biases is reached over the network."""


class Config(Settings):
    """Everything that a run depends on."""

    recipe: str
    """The recipe that the rest was composed from."""
    seed: Size = 0
    """Seed of every random choice."""
    search_path: tuple[str, ...] = ()
    """Folders laid out like ``conf/`` (``task/``, ``base/``, ``router/``, ``recipe/``) with choices of one's own."""
    task: Annotated[dict[str, TaskSettings], Field(min_length=1)]
    """The tasks by name, in the order of their experts."""
    base: BaseSettings
    """The base that routing reads and that experts sit on unless they name another."""
    bases: dict[str, BaseSettings] = Field(default_factory=dict)
    """Further bases by name."""
    data: DataSettings = DataSettings()
    """Where rows come from."""
    experts: ExpertSettings = ExpertSettings()
    """The expert phase."""
    router: RouterSettings = RouterSettings()
    """The router and its phase."""
    joint: JointSettings = JointSettings()
    """The joint phase."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """Held-out rows."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; ``auto`` takes a CUDA device when there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the forward pass; ``auto`` is fp32 on a CPU and bf16 or fp16 on a GPU."""
    tracking: TrackingSettings = TrackingSettings()
    """What is written beside the log."""
    bench: BenchSettings = BenchSettings()
    """The comparison of arms, where ``run`` is one, and what it measures."""
    complexity: ComplexitySettings | None = None
    """How rows get their tier, where the tasks are tiers of one instruction data set; ``null`` where they are not."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        for key, task in self.task.items():
            if task.name != key:
                raise ValueError(f"task.{key}.name is {task.name!r}; a task's name is its key, {key!r}")
        return self

    def expert(self, task: str) -> ExpertSettings:
        """Return the expert phase as ``task`` sees it: its ``hyper`` applied, ``train_rows`` one number or ``None``."""
        changes = {"train_rows": self.experts.rows_for(task), **self.task[task].hyper.model_dump()}
        return self.experts.model_copy(update=changes)

    def to_json(self) -> dict[str, Any]:
        """Return the tree as plain JSON values."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Return the tree as YAML that ``compose(config_file=...)`` and ``load`` read back unchanged."""
        return str(yaml.safe_dump(self.to_json(), sort_keys=False, allow_unicode=True, width=120))

    def digest(self) -> str:
        """Return 16 hexadecimal digits that change with any setting: the ``config_hash`` of reports."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]
