"""The same experts trained three ways: packed, by PEFT with the Trainer one after another, and by full fine-tuning."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from torch import Tensor, nn
from transformers import AutoModel, Trainer, TrainingArguments

import _common  # noqa: F401 - sets the environment before transformers is imported
from dynamorouter.config.compose import compose
from dynamorouter.data.native import has_split, read_split
from dynamorouter.data.split import draw
from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.base import Head, build_head
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.lora.mount import mount
from dynamorouter.model.lora.targets import target_layers
from dynamorouter.model.text.examples import TrainingExample, make_examples
from dynamorouter.model.text.trunk_cache import TrunkCache
from dynamorouter.tasks.kinds import head_kind
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Task
from dynamorouter.training.config import ExpertConfig
from dynamorouter.training.experts import CacheOptions, Validator, fresh_expert
from dynamorouter.training.learner import ExpertLearner, ExpertPlan
from dynamorouter.training.loop import LoopOptions, PackedLoop
from dynamorouter.utils.jsonl import SkipCount

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RATE, BATCH, BUDGET, WARMUP = 1e-3, 32, 4096, 0.06
Rows = Mapping[str, Sequence[Record]]


def tasks_of_seven() -> list[Task]:
    """Return the six tasks of the recipe that an encoder answers, contexts cut at 256 tokens to keep the run short."""
    config = compose("seven", ["data=builtin", "task.squad.max_tokens=256", "task.squad.stride=64"])
    tasks = config.task.values()
    return [task for task in tasks if not head_kind(task.head).is_generative]


def minilm() -> Base:
    """Load MiniLM on the benchmark's device."""
    return Base.load(compose("quickstart").base, device=DEVICE)


def sample(tasks: Sequence[Task], data: Path, split: str, rows: int, *, seed: int) -> dict[str, list[Record]]:
    """Draw the same rows each time; from the built-in data where ``data`` has none."""
    found: dict[str, list[Record]] = {}
    for task in tasks:
        if has_split(data, task, split):
            records = read_split(task, data, split, skip_bad=SkipCount())  # some answers are empty
        else:
            from dynamorouter.data.convert import native_records
            from dynamorouter.data.sources import load

            records = list(native_records(task, 0, load(task, split, "builtin", task.sources["builtin"]), split=split))
        kind = head_kind(task.head)
        parts, _ = draw(records, {"rows": min(rows, len(records))}, kind=kind, seed=seed, purpose="benchmark")
        found[task.name] = parts["rows"]
    return found


def plans(tasks: Sequence[Task], *, depth: int, epochs: int, rank: int = 8) -> list[ExpertPlan]:
    """Plan one expert per task, dropout off, so that all ways train the same thing."""
    config = ExpertConfig(
        rank=rank,
        alpha=2 * rank,
        trunk_depth=depth,
        epochs=epochs,
        batch_rows=BATCH,
        learning_rate=RATE,
        warmup=WARMUP,
        patience=0,
    )
    return [ExpertPlan(task, config, {"dropout": 0.0}) for task in tasks]


@dataclasses.dataclass
class Packed:
    """Everything that packed training needs, tokenised once.

    Attributes:
        base: the base.
        plans: one per task.
        experts: fresh, the same each time.
        examples: of all tasks, by task.
    """

    base: Base
    plans: list[ExpertPlan]
    experts: list[Expert]
    examples: list[list[TrainingExample]]

    @staticmethod
    def of(base: Base, own: list[ExpertPlan], rows: Rows, *, seed: int = 0) -> Packed:
        """Tokenise the rows."""
        experts = [fresh_expert(base, plan, seed=seed) for plan in own]
        examples = [
            make_examples(base, expert.head, plan.task, rows[plan.task.name], expert=i)
            for i, (plan, expert) in enumerate(zip(own, experts, strict=True))
        ]
        return Packed(base, own, experts, examples)

    def tokens(self) -> int:
        """Count the tokens of one epoch."""
        return sum(len(example) for own in self.examples for example in own)

    def train(self, *, seed: int = 0, fresh: bool = True, packing: bool = False) -> list[ExpertLearner]:
        """Train all experts at once, from the same start each time; the trunk's outputs are computed within."""
        if fresh:
            self.experts = [fresh_expert(self.base, plan, seed=seed) for plan in self.plans]
        mounted = mount(self.base, self.experts, trainable=True)
        flat = [example for own in self.examples for example in own]
        learners, first = [], 0
        for i, (plan, expert) in enumerate(zip(self.plans, self.experts, strict=True)):
            places = range(first, first + len(self.examples[i]))
            learners.append(ExpertLearner(i, plan, expert.head.to(DEVICE), mounted, places, seed=seed))
            first += len(self.examples[i])
        depth = min(plan.config.trunk_depth for plan in self.plans)
        cache = TrunkCache(self.base, flat, depth=depth, limit=4 << 30, budget=BUDGET)
        cache.fill()

        def epochs_done(head: Head, index: int) -> float:
            return float(learners[index].progress.epoch)  # so that every epoch is the best one

        PackedLoop(
            mounted,
            learners,
            flat,
            cache,
            validators=dict.fromkeys(range(len(learners)), epochs_done),
            options=LoopOptions(tokens_per_batch=BUDGET, seed=seed, packing=packing),
        ).run()
        return learners


class WithHead(nn.Module):
    """A base with our head, as the Trainer wants it: keyword tensors in, a loss out."""

    def __init__(self, model: nn.Module, head: Head) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, targets: Any) -> Any:
        """Return the mean loss over the batch's terms."""
        hidden = self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        units = sum(self.head.units(target) for target in targets)
        return {"loss": self.head.loss(hidden, attention_mask, targets).sum() / units}


class Items(torch.utils.data.Dataset[dict[str, Any]]):
    """Tokenised examples of one task."""

    def __init__(self, examples: Sequence[TrainingExample]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.examples[index]
        return {"input_ids": example.ids, "types": example.types, "target": example.target, "length": len(example)}


def by_trainer(
    packed: Packed, index: int, *, layers: str, seed: int = 0, grouped: bool = True
) -> tuple[WithHead, float]:
    """Train one task with Hugging Face's Trainer.

    Args:
        packed: the tokenised rows.
        index: of the task.
        layers: ``lora`` for PEFT with the plan's own layers, ``all`` for LoRA in all layers, ``full`` for every weight.
        seed: of order and initial weights.
        grouped: rows of like length share a step, as the Trainer offers; else they are drawn at random.

    Returns:
        The trained model, and the seconds that ``Trainer.train`` took: loading the model is left out.
    """
    plan = packed.plans[index]
    torch.manual_seed(seed)
    model = AutoModel.from_pretrained(
        packed.base.spec.locate(), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    model.pooler = None
    if layers != "full":
        depth = 0 if layers == "all" else plan.config.trunk_depth
        names = target_layers(packed.base, "all-linear", trunk_depth=depth)
        model = get_peft_model(
            model,
            PeftConfig(r=plan.config.rank, lora_alpha=int(plan.config.alpha), lora_dropout=0.0, target_modules=names),
        )
    head = build_head(plan.task, packed.base.width, plan.head_options)
    head.load_state_dict(fresh_expert(packed.base, plan, seed=seed).head.state_dict())
    whole = WithHead(model, head)

    def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = packed.base.encoder.pad(
            [i["input_ids"] for i in items], [i["types"] for i in items], torch.device("cpu")
        )
        return {
            "input_ids": batch.ids,
            "attention_mask": batch.mask,
            "token_type_ids": batch.types,
            "targets": [i["target"] for i in items],
        }

    rate = RATE if layers != "full" else 5e-5
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=whole,
            args=trainer_arguments(folder, epochs=plan.config.epochs, rate=rate, seed=seed, grouped=grouped),
            train_dataset=Items(packed.examples[index]),
            data_collator=collate,
        )
        _, seconds = timed(trainer.train)
    return whole.eval(), seconds


def trainer_arguments(folder: str, *, epochs: int, rate: float, seed: int, grouped: bool = True) -> TrainingArguments:
    """Return the Trainer's settings that correspond to ours, with nothing written or logged."""
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        learning_rate=rate,
        weight_decay=0.01,
        warmup_steps=WARMUP,
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        seed=seed,
        train_sampling_strategy="group_by_length" if grouped else "random",
        length_column_name="length",
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )


def examine(base: Base, task: Task, records: Sequence[Record], trained: WithHead | ExpertLearner) -> float:
    """Score one trained expert on held-out rows by the task's primary metric."""
    if isinstance(trained, ExpertLearner):
        depth = trained.plan.config.trunk_depth
        validator = Validator(base, task, records, depth=depth, budget=BUDGET, cache=CacheOptions())
        trained.head.eval()
        return validator(trained.head, trained.index)
    inner = trained.model.merge_and_unload() if hasattr(trained.model, "merge_and_unload") else trained.model
    other = Base(base.spec, inner, base.tokenizer)
    validator = Validator(other, task, records, depth=0, budget=BUDGET, cache=CacheOptions())
    return validator(trained.head, -1)


def timed(work: Any) -> tuple[Any, float]:
    """Return what ``work`` returns, and the seconds it took."""
    before = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - before


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return float(np.mean(values))
