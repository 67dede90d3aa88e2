"""Put adapters that PEFT trained into one routed system, and compare it with PEFT on rows that neither has seen.

    python examples/train_adapters.py --data DIR --out adapters          # any adapters will do; these are five
    python examples/bring_your_adapters.py --adapters adapters --data DIR --out bring --json bring.json

``DIR`` holds a folder per adapter with ``train.jsonl`` and ``validation.jsonl`` in the task's own columns. The router
learns from rows of train; everything that is printed comes from rows of validation that were used for nothing else.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from transformers.utils import logging

from dynamorouter import Record, System
from dynamorouter.config.tasks import find_task
from dynamorouter.data.native import read_split
from dynamorouter.metrics.base import score
from dynamorouter.tasks.answer import Answer
from dynamorouter.utils.environment import versions
from train_adapters import TASKS, AdapterTask, minilm

MAX_TOKENS = 512
"""Longest text that is read in one window, as PEFT reads it."""


@torch.inference_mode()
def peft_answers(folder: Path, task: AdapterTask, records: Sequence[Record], *, base: str) -> list[str | list[str]]:
    """Return what PEFT and transformers alone answer, one row at a time: a label, or a tag for each word."""
    kind = AutoModelForTokenClassification if task.is_tagging else AutoModelForSequenceClassification
    config = AutoConfig.from_pretrained(folder)
    model = PeftModel.from_pretrained(kind.from_pretrained(base, config=config), str(folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    answers: list[str | list[str]] = []
    for record in records:
        texts: list[Any] = [record.text.split(" ") if task.is_tagging else record.text]
        texts += [] if record.pair is None else [record.pair]
        encoded = tokenizer(*texts, return_tensors="pt", is_split_into_words=task.is_tagging, truncation=True)
        best = model(**encoded).logits[0].argmax(dim=-1)
        if task.is_tagging:
            words = encoded.word_ids()
            first = [place for place, word in enumerate(words) if word is not None and word != words[place - 1]]
            answers.append([config.id2label[int(best[place])] for place in first])
        else:
            answers.append(config.id2label[int(best)])
    return answers


def drawn(data: Path, name: str, split: str, count: int, *, seed: int) -> list[Record]:
    """Return rows of a split, drawn at random."""
    records = read_split(find_task(name), data, split)
    return random.Random(seed).sample(records, min(count, len(records)))


def compare(
    system: System, name: str, folder: Path, records: Sequence[Record], *, base: str
) -> dict[str, str | int | float]:
    """Return how one expert, alone and routed, does beside PEFT on the same rows."""
    task = system.experts[system.index(name)].task
    texts, pairs = [record.text for record in records], [record.pair for record in records]
    alone = system.predict(texts, pairs, [name] * len(records))
    routed = system.predict(texts, pairs)
    by_peft = peft_answers(folder, TASKS[name], records, base=base)
    kind = alone[0].answer.kind if alone[0].answer else ""
    metric = task.metrics[0]
    values = {
        "peft": score(task, [Answer(kind, value, None) for value in by_peft], records)[metric],
        "expert": score(task, [prediction.answer for prediction in alone], records)[metric],
        "routed": score(task, [prediction.answer for prediction in routed], records)[metric],
    }
    same = sum(one.answer is not None and one.answer.value == other for one, other in zip(alone, by_peft, strict=True))
    right = sum(prediction.expert == name for prediction in routed)
    return {"task": name, "metric": metric, "rows": len(records), "same_as_peft": same, "routed_right": right, **values}


def main() -> None:
    """Import, route, save, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=Path, required=True, help="folder of adapters' folders, named as the tasks")
    parser.add_argument("--data", type=Path, required=True, help="folder with TASK/{train,validation}.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="where the system goes")
    parser.add_argument("--base", default="minilm", help="of the adapters: a name, folder or hub id")
    parser.add_argument("--rows", type=int, default=300, help="rows of each task that are compared")
    parser.add_argument("--router-rows", type=int, default=500, help="rows of each task that the router learns from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None, help="where the figures go")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of PEFT's own calls
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    names = sorted(path.parent.name for path in options.adapters.glob("*/adapter_config.json"))

    start = time.perf_counter()
    system = System.new(options.base)
    tasks = {name: find_task(name).model_copy(update={"max_tokens": MAX_TOKENS}) for name in names}
    rows = {name: drawn(options.data, name, "train", options.router_rows, seed=options.seed) for name in names}
    experts, _ = system.import_adapters(options.adapters, data=rows, tasks=tasks, seed=options.seed)
    for added in experts:
        print(f"{added} (rows of train), {added.matched_layers} layers, norm {added.delta_norm:.2f}", flush=True)
    system.save(options.out)
    seconds = time.perf_counter() - start
    print(f"imported, routed and saved in {seconds:.0f} s\n")

    base = minilm() if options.base == "minilm" else options.base
    results = [
        compare(
            system,
            name,
            options.adapters / name,
            drawn(options.data, name, "validation", options.rows, seed=options.seed),
            base=base,
        )
        for name in names
    ]
    form = "{:<10} {:>12} {:>5} {:>12} {:>12} {:>6} {:>6} {:>6}"
    print(form.format("task", "metric", "rows", "same as PEFT", "routed right", "PEFT", "expert", "routed"))
    for row in results:
        values = [f"{row[column]:.3f}" for column in ("peft", "expert", "routed")]
        print(form.format(*(str(v) for v in list(row.values())[:3]), row["same_as_peft"], row["routed_right"], *values))
    kept = sum(float(row["routed"]) for row in results) / sum(float(row["peft"]) for row in results)
    print(f"routed, without naming a task: {kept:.1%} of what PEFT scores with the right adapter given")
    if options.json is not None:
        values = {"rows": results, "kept": kept, "seconds": seconds, "seed": options.seed, "versions": versions()}
        options.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
