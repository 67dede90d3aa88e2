"""Laws of bases that write: their parts and logits are the model's own, and adapters are PEFT's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from dynamorouter.errors import ConfigError
from dynamorouter.inference.generation.decoding import read_prompts
from dynamorouter.inference.generation.generate import generate
from dynamorouter.model.base import blocks
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.config import BaseSpec
from dynamorouter.model.base.kinds import check_logits
from dynamorouter.model.lora.peft import load_adapter, save_adapter
from dynamorouter.model.lora.targets import target_layers
from dynamorouter.model.text.tokenize import Batch
from support.tinylm import (
    DECODERS,
    EOS,
    LENGTHS,
    MODELS,
    SEQ2SEQ,
    VOCABULARY,
    add_experts,
    alone,
    byte_tokenizer,
    load_lm,
    loader,
    make_prompts,
)

TOKENS = 14
Folder = Callable[[str], Path]


def test_what_an_architecture_cannot_do_is_found_out(
    lm_folder: Folder, tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cpu")
    with pytest.raises(ConfigError, match=r"as a decoder, but .* lacks lm_head.weight.*kind=encoder"):
        Base.load(BaseSpec(name="b", path=str(tiny_folder("llama")), kind="decoder"), device=device)
    with torch.random.fork_rng():
        mamba = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4))
    mamba.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    base = load_lm(tmp_path)
    with pytest.raises(ConfigError, match=r"mamba, kind 'decoder'.*cannot generate text"):
        generate(base, [[5, 6]], None)
    base = load_lm(lm_folder("t5"))
    monkeypatch.setattr(blocks, "_lend_position_bias", lambda owner, user: nullcontext())
    with pytest.raises(ConfigError, match=r"t5 .*cannot be cut at block 1.*trunk_depth=0"):
        generate(base, [[5, 6]], None, reading=read_prompts(base, [[5, 6]], 1))
    with pytest.raises(ConfigError, match=r"t5 .*several examples in one row.*without packing"):
        base.forward(Batch(torch.ones(1, 2).long(), None, torch.ones(1, 2).long(), torch.zeros(1, 2).long()), None)
    monkeypatch.setattr(base.language_head, "before", 1.0)
    assert base.language_head is not None
    with pytest.raises(ConfigError, match=r"T5ForConditionalGeneration .*computes its logits in a way"):
        check_logits(base.parts, base.language_head, "b")


@pytest.mark.parametrize("architecture", list(MODELS))
def test_kind_parts_and_logits_are_the_models_own(lm_folder: Folder, architecture: str) -> None:
    base = load_lm(lm_folder(architecture))
    assert base.kind == ("decoder" if architecture in DECODERS else "seq2seq")
    assert EOS in base.eos_ids and base.spec.prompt == "plain"
    model = loader(base).from_pretrained(lm_folder(architecture)).eval()
    batch = base.encoder.pad(make_prompts(), [[0] * n for n in LENGTHS], base.device)
    live = batch.mask.bool()
    with torch.inference_mode():
        if base.kind == "decoder":
            got = base.logits(base.forward(batch, None))[live]
            want = model(input_ids=batch.ids, attention_mask=batch.mask).logits[live]
        else:
            labels = torch.randint(4, VOCABULARY, (len(LENGTHS), 7))
            labels[2, 4:] = -100
            hidden = base.decode_hidden(base.encode(batch, None), batch.mask, labels, None)
            got, want = base.logits(hidden), model(batch.ids, attention_mask=batch.mask, labels=labels).logits
    torch.testing.assert_close(got, want)
    names = target_layers(base, "all-linear", trunk_depth=1)
    assert not [name for name in names if "head" in name or "embed" in name or f"{base.blocks_name}.0." in name]
    assert any("decoder" in name for name in names) == (architecture in SEQ2SEQ)
    assert (base.parts.decoder is None) == (base.decoder_name is None) == (architecture in DECODERS)


@pytest.mark.parametrize("architecture", list(MODELS))
def test_adapters_pass_between_peft_and_us(lm_folder: Folder, tmp_path: Path, architecture: str) -> None:
    base = load_lm(lm_folder(architecture))
    oracle, _mounted = add_experts(base, tmp_path / "theirs", architecture, 1, first_block=2)
    adapter = load_adapter(tmp_path / "theirs" / "e0", base)
    assert adapter.lora.trunk_depth == 2
    save_adapter(tmp_path / "ours", adapter.factors, adapter.lora, base)
    model = loader(base).from_pretrained(lm_folder(architecture))
    again = type(oracle).from_pretrained(model, tmp_path / "ours", adapter_name="e0").eval()
    prompt = make_prompts([6])[0]
    assert alone(again, prompt, 0, tokens=TOKENS) == alone(oracle, prompt, 0, tokens=TOKENS)
    assert alone(again, prompt, 0, tokens=TOKENS) != alone(oracle, prompt, -1, tokens=TOKENS)


@pytest.mark.parametrize("architecture", DECODERS)
def test_examples_in_one_row_do_not_see_each_other(lm_folder: Folder, architecture: str) -> None:
    base = load_lm(lm_folder(architecture))
    one, other = (torch.tensor([prompt]) for prompt in make_prompts([5, 8]))
    places = torch.cat([torch.arange(5), torch.arange(8), torch.zeros(3).long()])[None]
    ids = torch.cat([one, other, torch.zeros(1, 3).long()], dim=1)
    mask = torch.cat([torch.ones(1, 13), torch.zeros(1, 3)], dim=1).long()
    with torch.inference_mode():
        states = base.forward_to(Batch(ids, None, mask, places), 2)[2]
        packed = base.forward(Batch(ids, None, mask, places), None)
        cut = base.forward_from(states, mask, None, depth=2, positions=places)
        for got in (packed, cut):
            torch.testing.assert_close(got[:, :5], base.forward(Batch(one, None, torch.ones_like(one)), None))
            torch.testing.assert_close(got[:, 5:13], base.forward(Batch(other, None, torch.ones_like(other)), None))
