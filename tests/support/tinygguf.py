"""A tiny Llama as llama.cpp writes it: one file with weights, some of them quantised, settings and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

from support.tinylm import byte_tokenizer

SIZE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(path: Path) -> LlamaForCausalLM:
    """Write a random model's file, its second projections in eight bits, and return the model as it was."""
    tokenizer = byte_tokenizer()
    words: dict[str, int] = tokenizer.get_vocab()
    words["th"] = len(words)  # what the one merge makes
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(words),
                num_key_value_heads=2,
                max_position_embeddings=64,
                bos_token_id=1,
                eos_token_id=2,
                initializer_range=0.2,
                **SIZE,
            )
        ).eval()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(4)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(words, key=words.__getitem__))
    writer.add_token_types([gguf.TokenType.NORMAL] * len(words))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    for name, weight in model.state_dict().items():
        values, kind = _as_written(name, weight.float().numpy())
        writer.add_tensor(_name(name), values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _name(name: str) -> str:
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem = name.removesuffix(".weight")
    if stem in outer:
        return f"{outer[stem]}.weight"
    _, _, block, inner = stem.split(".", 3)
    return f"blk.{block}.{NAMES[inner]}.weight"


def _as_written(name: str, weight: NDArray[np.float32]) -> tuple[NDArray[Any], Any]:
    """Return a weight in llama.cpp's order of rows, and how it is stored."""
    heads = 4 if "q_proj" in name else 2 if "k_proj" in name else 0
    if heads:  # halves of each head's rotation lie side by side there
        out, width = weight.shape
        weight = weight.reshape(heads, 2, out // heads // 2, width).swapaxes(1, 2).reshape(out, width)
    if "down_proj" in name:
        return gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0), gguf.GGMLQuantizationType.Q8_0
    return np.ascontiguousarray(weight), None
