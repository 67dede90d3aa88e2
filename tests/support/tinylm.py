"""Tiny random language models with a byte-level tokenizer, and PEFT adapters over them; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from dynamorouter.model.base.base import Base
from dynamorouter.model.base.config import BaseSpec
from dynamorouter.model.lora.mount import Mounted, mount
from dynamorouter.model.lora.peft import load_adapter
from support.banks import Change

PAD, BOS, EOS, VOCABULARY = 0, 1, 2, 260
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "initializer_range": 0.25,
}
TWO_STACKS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 96,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "forced_eos_token_id": None,
    "init_std": 0.25,
}
MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=4,
            n_head=4,
            n_positions=96,
            bos_token_id=BOS,
            eos_token_id=EOS,
            initializer_range=0.25,
        )
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=2)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, num_key_value_heads=2, tie_word_embeddings=True)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SHAPE, num_key_value_heads=2, head_dim=8, sliding_window=6, tie_word_embeddings=False)
    ),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=3,
            num_decoder_layers=2,
            num_heads=4,
            decoder_start_token_id=PAD,  # type: ignore[call-arg]  # a keyword of every configuration
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
    ),
    "bart": lambda: BartForConditionalGeneration(BartConfig(**TWO_STACKS, decoder_start_token_id=EOS)),
    "pegasus": lambda: PegasusForConditionalGeneration(PegasusConfig(**TWO_STACKS, decoder_start_token_id=PAD)),
}
DECODERS, SEQ2SEQ = ("gpt2", "llama", "qwen2", "gemma2"), ("t5", "bart", "pegasus")
TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "t5": ["q", "v", "wi", "wo"],
    "bart": ["q_proj", "v_proj", "out_proj", "fc1"],
    "pegasus": ["q_proj", "v_proj", "out_proj", "fc1"],
}
PLAIN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]


LENGTHS = [5, 11, 8, 3, 9, 1]


def make_prompts(lengths: list[int] = LENGTHS, *, seed: int = 3) -> list[list[int]]:
    """Draw prompts of some lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that has one token for every byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "<s>", "</s>", "<unk>", *alphabet]
    fast = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def write_lm(folder: Path, architecture: str, *, seed: int = 0) -> Path:
    """Write a tiny random language model whose choices are clear, in the hub's own format."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MODELS[architecture]()
        if architecture in ("t5", "pegasus"):  # left alone, they say the same token over and over
            for name, parameter in model.named_parameters():
                if parameter.dim() == 2:
                    torch.nn.init.normal_(parameter, std=0.1 if "shared" in name else 0.6)
    model.save_pretrained(str(folder))
    byte_tokenizer().save_pretrained(str(folder))
    return folder


def load_lm(folder: Path) -> Base:
    """Load a base."""
    return Base.load(BaseSpec(name=folder.name, path=str(folder)), device=torch.device("cpu"))


def loader(base: Base) -> Any:
    """Return the class that PEFT's folders of this base's experts are loaded over."""
    return AutoModelForCausalLM if base.kind == "decoder" else AutoModelForSeq2SeqLM


def add_experts(
    base: Base, folder: Path, architecture: str, count: int, *, first_block: int = 0
) -> tuple[PeftModel, Mounted]:
    """Make random adapters with PEFT and mount them; returns PEFT's model, the oracle, and the mount, to be held.

    Args:
        base: loaded from ``base.spec.path``.
        folder: where the adapters are written.
        architecture: one of ``MODELS``.
        count: how many; they are called e0, e1, ...
        first_block: blocks below this one get no factors.
    """
    wanted: Any = TARGETS.get(architecture, PLAIN)
    if first_block:
        ends = "|".join(wanted)
        wanted = rf".*\.({'|'.join(str(i) for i in range(first_block, base.depth))})\..*\.({ends})"
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=wanted, init_lora_weights=False, fan_in_fan_out=architecture == "gpt2"
    )
    torch.manual_seed(7)
    oracle = get_peft_model(loader(base).from_pretrained(base.spec.path), config, adapter_name="e0")
    for i in range(1, count):
        oracle.add_adapter(f"e{i}", config)
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    oracle.eval().save_pretrained(str(folder))
    experts = [Change(f"e{i}", load_adapter(folder / f"e{i}", base).factors) for i in range(count)]
    return oracle, mount(base, experts, trainable=True)


@torch.inference_mode()
def alone(oracle: PeftModel, prompt: list[int], expert: int, *, tokens: int) -> list[int]:
    """Let PEFT write one row greedily with one expert, -1 being none; what ends it is left out."""
    ids = torch.tensor([prompt])
    options: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "max_new_tokens": tokens, "do_sample": False}
    options |= {"pad_token_id": PAD, "eos_token_id": EOS}
    if expert < 0:
        with oracle.disable_adapter():
            found = oracle.generate(input_ids=ids, **options)[0].tolist()
    else:
        oracle.set_adapter(f"e{expert}")
        found = oracle.generate(input_ids=ids, **options)[0].tolist()
    said = found[1:] if oracle.config.is_encoder_decoder else found[len(prompt) :]
    return said[: said.index(EOS)] if EOS in said else said
