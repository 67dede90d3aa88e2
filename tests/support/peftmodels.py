"""Task models with random PEFT adapters, over tiny encoders and decoders of every family whose heads are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    RobertaConfig,
)

from dynamorouter.model.base.base import Base
from dynamorouter.model.base.config import BaseSpec
from dynamorouter.tasks.task import Columns, Task
from support.tinylm import byte_tokenizer

VOCABULARY = 260
SIZE: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0}
ENCODER: dict[str, Any] = {
    **SIZE,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
}
FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "bert": lambda: BertConfig(**ENCODER),
    "roberta": lambda: RobertaConfig(**ENCODER, type_vocab_size=1),
    "distilbert": lambda: DistilBertConfig(
        **SIZE, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=40, initializer_range=0.2
    ),
    "deberta-v2": lambda: DebertaV2Config(**ENCODER, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "electra": lambda: ElectraConfig(**ENCODER, embedding_size=8),
    "mpnet": lambda: MPNetConfig(**ENCODER),
    "modernbert": lambda: ModernBertConfig(**ENCODER, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2),
    "llama": lambda: LlamaConfig(**ENCODER, num_key_value_heads=2, bos_token_id=1, eos_token_id=2),
    "gpt2": lambda: GPT2Config(
        **SIZE, n_embd=16, n_layer=2, n_head=2, n_positions=40, bos_token_id=1, eos_token_id=2, initializer_range=0.2
    ),
}
KNOWN = tuple(name for name in FAMILIES if name != "modernbert")
"""Families whose heads can be exchanged."""
DECODERS = ("llama", "gpt2")
TASK_MODELS: dict[str, Any] = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
}
LABELS = ("O", "B-X", "I-X")
HEADS = {
    "SEQ_CLS": Task(name="topic", head="classification", columns=Columns(text="text", target="label"), labels=LABELS),
    "TOKEN_CLS": Task(
        name="tags", head="tags", columns=Columns(text="t", target="g"), labels=LABELS, metrics=("entity_f1",)
    ),
    "QUESTION_ANS": Task(
        name="ask", head="span", columns=Columns(text="q", target="a", pair="c"), metrics=("squad_f1",)
    ),
}


def write_family(folder: Path, family: str) -> Path:
    """Write a tiny random model of a family: a decoder with its language head, an encoder without any."""
    config = FAMILIES[family]()
    torch.manual_seed(0)
    if family in DECODERS:
        AutoModelForCausalLM.from_config(config).save_pretrained(str(folder))
    else:
        whole = AutoModelForSequenceClassification.from_config(config)
        getattr(whole, whole.base_model_prefix).save_pretrained(str(folder))
    byte_tokenizer().save_pretrained(str(folder))
    return folder


def open_base(folder: Path) -> Base:
    return Base.load(BaseSpec(name="tiny", path=str(folder)), device=torch.device("cpu"))


def task_model(base: Path, task_type: str) -> Any:
    """Return a fresh task model over a base; its head is random, and the same every time."""
    more = {} if task_type == "QUESTION_ANS" else {"num_labels": len(LABELS)}
    torch.manual_seed(1)
    return TASK_MODELS[task_type].from_pretrained(base, **more)


def peft_adapter(model: Any, *, seed: int = 7, std: float = 0.3, **options: Any) -> PeftModel:
    """Put random factors, and a random head where it is trained, on a model."""
    found = get_peft_model(model, LoraConfig(**{"r": 3, "lora_alpha": 6, **options}))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in found.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                value.normal_(0, std)
    return found.eval()


def linear_names(base: Base, *, beside: Sequence[str] = ("pooler",)) -> list[str]:
    """Return the last parts of the names of a base's linear layers, those under ``beside`` left out."""
    return sorted({name.rpartition(".")[2] for name in base.linear if not name.startswith(tuple(beside))})
