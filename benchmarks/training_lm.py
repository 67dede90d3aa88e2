"""Experts that write, trained packed beside PEFT with Hugging Face's Trainer, one task after another.

Three tasks over a random GPT-2, 6 layers deep and 256 wide, with the mini model's tokenizer. Both sides get the same
tokenised rows, epochs, rows per step, learning rates and no dropout, and learn the answers alone; the Trainer groups
rows by length, and computes its loss as ``transformers`` does. Goal: 1.5 times faster. ``over_best_peer`` is our time
over the peer's: 0.5 is twice as fast.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, Trainer

from _common import arguments, finish, row
from _training import BATCH, DEFAULT_DATA, RATE, Items, Packed, plans, sample, timed, trainer_arguments
from dynamorouter.config.compose import compose
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.config import BaseSpec
from dynamorouter.model.lora.targets import target_layers
from dynamorouter.tasks.task import Task
from dynamorouter.utils.devices import pick_device

NAMES = ("alpaca", "gsm8k", "xsum")
LAYERS, WIDTH, HEADS, POSITIONS = 6, 256, 8, 512


def random_mini(folder: Path) -> Base:
    """Write and load a random GPT-2 of the mini model's shape, with its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(compose("quickstart", ["base=mini"]).base.locate())
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=POSITIONS,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Base.load(BaseSpec(name="mini", path=str(folder), kind="decoder"), device=pick_device("auto"))


def written_tasks() -> list[Task]:
    """Return three tasks whose answers are generated."""
    config = compose("quickstart", [f"task=[{','.join(NAMES)}]", "base=mini"])
    return list(config.task.values())


def by_trainer(packed: Packed, index: int) -> float:
    """Train one task with Hugging Face's Trainer; returns the seconds that ``Trainer.train`` took."""
    plan = packed.plans[index]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(packed.base.spec.path)
    names = [name.rsplit(".", 1)[-1] for name in target_layers(packed.base, "all-linear", trunk_depth=0)]
    lora = LoraConfig(
        r=plan.config.rank,
        lora_alpha=int(plan.config.alpha),
        lora_dropout=0.0,
        target_modules=sorted(set(names)),
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
    )

    def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        ids, types = [item["input_ids"] for item in items], [item["types"] for item in items]
        batch = packed.base.encoder.pad(ids, types, torch.device("cpu"))
        labels = torch.full_like(batch.ids, -100)
        for at, item in enumerate(items):
            begin, said = int(item["target"][0]), torch.as_tensor(item["target"][1:])
            labels[at, begin : begin + len(said)] = said
        return {"input_ids": batch.ids, "attention_mask": batch.mask, "labels": labels}

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=get_peft_model(model, lora),
            args=trainer_arguments(folder, epochs=plan.config.epochs, rate=RATE, seed=0),
            train_dataset=Items(packed.examples[index]),
            data_collator=collate,
        )
        _, seconds = timed(trainer.train)
    return seconds


def speed(case: str, packed: Packed, *, rounds: int, packing: bool, limit: float) -> dict[str, Any]:
    """Time whole trainings in turn."""
    times: dict[str, list[float]] = {"ours": [], "PEFT + Trainer": []}
    for i in range(rounds + 1):
        ours = timed(lambda: packed.train(packing=packing))[1]
        theirs = sum(by_trainer(packed, task) for task in range(len(packed.plans)))
        if i:  # the first round warms up
            times["ours"].append(1000 * ours)
            times["PEFT + Trainer"].append(1000 * theirs)
    said = sum(example.units for own in packed.examples for example in own)
    return row(case, times, limit=limit, against="over_best_peer", tokens=packed.tokens(), answer_tokens=said)


def main() -> None:
    """Run the benchmark."""
    parser = arguments("training_lm", __doc__ or "")
    parser.add_argument(
        "--data", type=Path, default=DEFAULT_DATA, help="folder with real rows; built-in ones elsewhere"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=64, help="rows per task")
    args = parser.parse_args()
    tasks = written_tasks()
    rows = sample(tasks, args.data, "train", 16 if args.quick else args.rows, seed=0)
    rounds = 1 if args.quick else args.rounds
    table = []
    with tempfile.TemporaryDirectory() as folder:
        own = [dataclasses.replace(plan, head_options={}) for plan in plans(tasks, depth=0, epochs=1)]
        packed = Packed.of(random_mini(Path(folder)), own, rows)
        for packing in (True, False):
            case = "three experts, short rows packed" if packing else "three experts, a row each"
            table.append(speed(case, packed, rounds=rounds, packing=packing, limit=1 / 1.5))
            print(table[-1]["over_best_peer"], file=sys.stderr)
    finish(args.out, table, rows_per_task=16 if args.quick else args.rows, rows_per_step=BATCH)


if __name__ == "__main__":
    main()
