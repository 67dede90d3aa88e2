"""Processor time from an empty process to the first answer, beside transformers loading the same base.

Goal: at most two seconds more than transformers needs to load the base and read one text, and ``--help`` under .3 s of
imports. Every piece of work is a process of its own, taken in turn; times are user and system time together, since a
machine with other work makes the clock on the wall say little.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from _common import arguments, finish, row
from _training import minilm
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.config import BaseSpec
from dynamorouter.system.system import System
from dynamorouter.tasks.task import Columns, Task
from dynamorouter.training.config import ExpertConfig
from dynamorouter.training.experts import fresh_expert
from dynamorouter.training.learner import ExpertPlan

MORE_MS = 2000
"""What a first answer may take beyond transformers' own loading."""
OURS = """
from dynamorouter import System
System.load({system!r}, device='cpu').predict(['A warm, funny film.'], tasks=['mood'])
"""
THEIRS = """
import torch
from transformers import {loader}, AutoTokenizer
model = {loader}.from_pretrained({base!r}, dtype=torch.float32)
with torch.inference_mode():
    model(**AutoTokenizer.from_pretrained({base!r})('A warm, funny film.', return_tensors='pt'))
"""
TASK = Task(name="mood", head="classification", columns=Columns(text="text", target="label"), labels=("bad", "good"))


def processor_ms(*words: str) -> float:
    """Run a process to its end and return the milliseconds of processor time that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def write_llama(folder: Path, blocks: int) -> Base:
    """Write a random Llama, of 135 million parameters with 30 blocks, with a tokenizer of as many tokens as bytes."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=blocks,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    bytes_alone = ByteLevelBPETokenizer()
    bytes_alone.train_from_iterator([], vocab_size=258, special_tokens=["<s>", "</s>"])
    PreTrainedTokenizerFast(tokenizer_object=bytes_alone._tokenizer, eos_token="</s>").save_pretrained(folder)
    return Base.load(BaseSpec(name="llama", path=str(folder)), device=torch.device("cpu"))


def write_system(base: Base, folder: Path) -> Path:
    """Write a system of one fresh expert over a base."""
    expert = fresh_expert(base, ExpertPlan(TASK, ExpertConfig()), seed=0)
    return System({base.spec.name: base}, [expert], None, router_base=base.spec.name).save(folder)


def main() -> None:
    """Run the benchmark."""
    parser = arguments("startup", __doc__ or "")
    args = parser.parse_args()
    rounds, rows = (1 if args.quick else 5), []
    with tempfile.TemporaryDirectory() as folder:
        bases: dict[str, Callable[[], Base]] = {
            "MiniLM": minilm,
            "a Llama": lambda: write_llama(Path(folder) / "llama", 2 if args.quick else 30),
        }
        for name, load in bases.items():
            base = load()
            system, place = write_system(base, Path(folder) / f"{name} system"), base.spec.locate()
            loader = "AutoModel" if base.kind == "encoder" else "AutoModelForCausalLM"
            times: dict[str, list[float]] = {"ours": [], "base": []}
            for _ in range(rounds):
                times["base"].append(processor_ms("-c", THEIRS.format(loader=loader, base=place)))
                times["ours"].append(processor_ms("-c", OURS.format(system=str(system))))
            size = base.parameters() / 1e6
            made = row(f"first answer on {name} of {size:.0f} M parameters", times, limit=None)
            more = made["ours_ms"] - made["base_ms"]
            rows.append({**made, "more_ms": more, "within": more <= MORE_MS})
    helped = [processor_ms("-c", "import dynamorouter.cli.main") for _ in range(rounds)]
    python = [processor_ms("-c", "pass") for _ in range(rounds)]
    made = row("imports of --help", {"ours": helped, "base": python}, limit=None)
    rows.append({**made, "more_ms": made["ours_ms"] - made["base_ms"], "within": made["ours_ms"] <= 300})
    finish(args.out, rows)


if __name__ == "__main__":
    main()
