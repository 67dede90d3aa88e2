"""Merging experts that write: what informed methods need is collected on decoders and encoder-decoders too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dynamorouter.errors import MergeError
from dynamorouter.merging.calibration import observed
from dynamorouter.merging.merge import merge_experts
from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.base import build_head
from dynamorouter.model.lora.config import LoraConfig
from dynamorouter.model.lora.expert import Expert, fresh_factors
from dynamorouter.model.lora.factors import Factors
from dynamorouter.model.lora.peft import save_adapter
from dynamorouter.model.text.examples import batch_of, make_examples
from dynamorouter.system.merge import _compare
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Columns, Generation, Task
from dynamorouter.utils.seeding import seeded
from support.tinylm import load_lm, write_lm

KINDS = {"llama": "causal_lm", "gpt2": "causal_lm", "t5": "seq2seq"}


def task(name: str, head: str) -> Task:
    return Task(
        name=name,
        head=head,  # type: ignore[arg-type]
        columns=Columns(text="text", target="summary"),
        metrics=("rouge_l",),
        max_tokens=40,
        generation=Generation(max_new_tokens=12),
    )


def rows(name: str, count: int) -> list[Record]:
    return [Record(f"{name} {'ab' * i} text", None, 0, name, {"texts": [f"answer {i}"]}, str(i)) for i in range(count)]


def make(base: Base, head: str) -> list[Expert]:
    experts = []
    for name in ("one", "two"):
        lora = LoraConfig(rank=2, alpha=4)
        factors = {
            layer: Factors(f.a, 0.2 * torch.randn(f.b.shape, generator=seeded(1, name, layer)), f.scaling)
            for layer, f in fresh_factors(base, lora, seed=0, name=name).items()
        }
        own = task(name, head)
        experts.append(Expert(name, own, "base", factors, build_head(own, base.width).eval(), lora))
    return experts


@pytest.mark.parametrize("architecture", KINDS)
def test_moments_gradients_and_losses_are_collected(architecture: str, tmp_path: Path) -> None:
    base = load_lm(write_lm(tmp_path / "base", architecture))
    experts = make(base, KINDS[architecture])
    data = {expert.name: rows(expert.name, 6) for expert in experts}
    layers = set(experts[0].factors)
    for need in ("grams", "fisher"):
        with observed(need, base, experts, data) as seen:  # type: ignore[arg-type]
            assert all(set(seen[name]) == layers for name in data)
            assert all(
                bool(v.isfinite().all()) and float(v.abs().max()) > 0 for own in seen.values() for v in own.values()
            )
            method = {"grams": "regmean", "fisher": "fisher"}[need]
            merged = merge_experts(experts, method=method, **{need: seen})
        assert set(merged.factors) == layers
    with observed("objective", base, experts, data) as judge:
        halves = torch.full((2,), 0.5, dtype=torch.float64)
        result = merge_experts(experts, method="lorahub", objective=judge, budget=10, l1=0.0)
        assert judge(dict.fromkeys(layers, torch.tensor([0.0, 0.0]))) != judge(dict.fromkeys(layers, halves))
    before, after = (float(x) for x in result.notes[0].split("objective ")[1].split(" in")[0].split(" -> "))
    assert after <= before
    with pytest.raises(MergeError, match="no classes"), observed("entropy", base, experts, data):
        pass


def test_moments_of_a_decoder_are_those_of_its_inputs(tmp_path: Path) -> None:
    base = load_lm(write_lm(tmp_path / "base", "llama"))
    experts = make(base, "causal_lm")
    data = {expert.name: rows(expert.name, 5) for expert in experts}
    with observed("grams", base, experts, data) as seen:
        pass
    layer = next(name for name in experts[0].factors if name.endswith("layers.0.self_attn.q_proj"))  # the first of all
    inputs: list[torch.Tensor] = []
    hook = base.model.get_submodule(layer).register_forward_hook(lambda m, args, out: inputs.append(args[0][0]))
    for example in make_examples(base, experts[0].head, experts[0].task, data["one"], expert=0):
        base.forward(batch_of(base, [example]), None)
    hook.remove()
    tokens = torch.cat(inputs).double()
    torch.testing.assert_close(seen["one"][layer], tokens.T @ tokens / len(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_peft_agrees_with_a_merge_of_experts_that_write(architecture: str, tmp_path: Path) -> None:
    from peft import PeftModel

    base = load_lm(write_lm(tmp_path / "base", architecture))
    other = load_lm(tmp_path / "base")
    experts = make(base, "causal_lm")
    result = merge_experts(experts, method="tsv", output="rank=3")
    save_adapter(tmp_path / "adapter", result.factors, result.lora, base)
    PeftModel.from_pretrained(other.parts.language or other.model, str(tmp_path / "adapter")).eval()
    merged = Expert("m", experts[0].task, "base", result.factors, experts[0].head, result.lora)
    found = _compare(base, other, merged)
    assert found["ok"] and found["difference"] < 1e-5 < found["change"]
