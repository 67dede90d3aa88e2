"""The sides of the merge benchmark: each merges adapter folders to one adapter folder, in a process of its own.

python benchmarks/_merging.py SIDE WORK RANK    prints one line of JSON
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def write_work(folder: Path, *, blocks: int, width: int, experts: int, rank: int) -> None:
    """Write a random Llama in float32 and adapters of it, as PEFT writes them."""
    import torch
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from conftest import write_tiny  # the tokenizer

    write_tiny(folder / "base", "llama")
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "base")
    lora = PeftConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS)
    for i in range(experts):
        adapted = get_peft_model(model, lora, adapter_name="default")
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                value.data.normal_(0, 0.02)
        adapted.save_pretrained(folder / f"expert{i}")
        model = adapted.unload()


def ours(work: Path, out: Path, rank: int) -> dict[str, float]:
    """Load the adapters, merge, write."""
    import torch
    from transformers import LlamaForCausalLM

    from dynamorouter.merging.merge import merge_factors
    from dynamorouter.merging.registry import merges
    from dynamorouter.merging.truncate import Output
    from dynamorouter.model.base.base import Base
    from dynamorouter.model.base.config import BaseSpec
    from dynamorouter.model.lora.config import LoraConfig
    from dynamorouter.model.lora.peft import load_adapter, save_adapter

    method = merges.get("linear")  # all methods are imported here
    assert LlamaForCausalLM

    def work_on() -> dict[str, float]:
        base = Base.load(BaseSpec(name="base", path=str(work / "base")), device=torch.device("cpu"))
        loaded = {path.name: load_adapter(path, base).factors for path in sorted(work.glob("expert*"))}
        weights = torch.full((len(loaded),), 1 / len(loaded), dtype=torch.float64)
        start, used = time.perf_counter(), time.process_time()
        written, _ = merge_factors(loaded, method, weights, Output("rank", rank))
        taken = {"merge_ms": _since(start), "merge_cpu_ms": _since(used, cpu=True)}
        factors = {layer: each.factors for layer, each in written.items()}
        save_adapter(out, factors, LoraConfig(rank=rank, alpha=rank, dropout=0.0), base)
        return taken

    return _timed(work_on)


def peft(work: Path, out: Path, rank: int, *, full_matrices: bool = True) -> dict[str, float]:
    """Do the same with ``add_weighted_adapter``."""
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    def work_on() -> dict[str, float]:
        folders = sorted(work.glob("expert*"))
        base = LlamaForCausalLM.from_pretrained(work / "base")
        model = PeftModel.from_pretrained(base, folders[0], adapter_name=folders[0].name)
        for folder in folders[1:]:
            model.load_adapter(folder, adapter_name=folder.name)
        names = [folder.name for folder in folders]
        start, used = time.perf_counter(), time.process_time()
        model.add_weighted_adapter(
            names,
            [1 / len(names)] * len(names),
            "merged",
            combination_type="svd",
            svd_rank=rank,
            svd_full_matrices=full_matrices,
        )
        taken = {"merge_ms": _since(start), "merge_cpu_ms": _since(used, cpu=True)}
        model.save_pretrained(out, selected_adapters=["merged"])
        return taken

    return _timed(work_on)


def peft_reduced(work: Path, out: Path, rank: int) -> dict[str, float]:
    """Do the same with the option that spares the larger half of the singular vectors."""
    return peft(work, out, rank, full_matrices=False)


def mergekit(work: Path, out: Path, rank: int) -> dict[str, float]:
    """Merge each adapter into the base, merge the checkpoints, and extract an adapter from the result."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions
    from mergekit.scripts.extract_lora import main as extract

    def work_on() -> dict[str, float]:
        folders = sorted(work.glob("expert*"))
        base = str(work / "base")
        cache = str(out / "cache")
        parts = [{"model": f"{base}+{folder}", "parameters": {"weight": 1 / len(folders)}} for folder in folders]
        config = MergeConfiguration.model_validate(
            {"merge_method": "task_arithmetic", "base_model": base, "models": parts, "dtype": "float32"}
        )
        options = MergeOptions(lora_merge_cache=cache, copy_tokenizer=False, quiet=True)
        start, used = time.perf_counter(), time.process_time()
        run_merge(config, str(out / "whole"), options)
        words = ["--model", str(out / "whole"), "--base-model", base, "--out-path", str(out / "adapter")]
        more = ["--max-rank", str(rank), "-i", r"layers.*_proj$", "--skip-undecomposable"]
        extract([*words, *more], standalone_mode=False)
        return {"merge_ms": _since(start), "merge_cpu_ms": _since(used, cpu=True)}

    return _timed(work_on)


def _timed(work: Callable[[], dict[str, float]]) -> dict[str, float]:
    before = _peak()
    start, used = time.perf_counter(), time.process_time()
    found = work()
    whole = {"whole_ms": _since(start), "whole_cpu_ms": _since(used, cpu=True)}
    return {**found, **whole, "peak_mb": _peak(), "rise_mb": _peak() - before}


def _since(start: float, *, cpu: bool = False) -> float:
    return 1000 * ((time.process_time() if cpu else time.perf_counter()) - start)


def _peak() -> float:
    """Return the largest resident size of this process in MiB; what the parent held before it does not count."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


SIDES: dict[str, Callable[[Path, Path, int], dict[str, float]]] = {
    "ours": ours,
    "peft": peft,
    "peft, reduced SVD": peft_reduced,
    "mergekit": mergekit,
}


def main() -> None:
    """Run one side and print what it took."""
    warnings.simplefilter("ignore")
    side, work, rank = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=work) as out:
        found: dict[str, Any] = SIDES[side](work, Path(out), rank)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
