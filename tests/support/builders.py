"""Tiny real models with a word-piece tokenizer, and rows of three tiny tasks; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Columns, Task

WORDS = (  # noqa: SIM905 - a list of quoted words reads worse
    "the a film was dull bright and slow joy waste of time music team won match shares rose fell bank minister "
    "said in paris anna berlin acme who where what when is it good bad never always great poor plot acting scene"
).split()
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
ROBERTA = {**SHAPE, "max_position_embeddings": 66, "pad_token_id": 0, "type_vocab_size": 1}
CONFIGS: dict[str, Callable[[int], PreTrainedModel]] = {
    "bert": lambda size: BertModel(BertConfig(vocab_size=size, **SHAPE)),
    "roberta": lambda size: RobertaModel(RobertaConfig(vocab_size=size, **ROBERTA)),
    "distilbert": lambda size: DistilBertModel(
        DistilBertConfig(vocab_size=size, dim=32, n_layers=4, n_heads=4, hidden_dim=64, max_position_embeddings=64)
    ),
    "gpt2": lambda size: GPT2Model(
        GPT2Config(vocab_size=size, n_embd=32, n_layer=4, n_head=4, n_positions=64, bos_token_id=2, eos_token_id=3)
    ),
    "llama": lambda size: LlamaModel(LlamaConfig(vocab_size=size, **SHAPE)),
}


def write_tiny(folder: Path, architecture: str, *, seed: int = 0) -> Path:
    """Write a tiny random model with a tokenizer in the hub's own format."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", ",", "?", *WORDS])}
    vocabulary |= {f"##{letter}": len(vocabulary) + i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    vocabulary |= {letter: len(vocabulary) + i for i, letter in enumerate("bcdefghijklmnopqrstuvwxyz")}
    fast = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CONFIGS[architecture](len(vocabulary))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


MOOD = Task(
    name="mood",
    head="classification",
    columns=Columns(text="text", target="label"),
    labels=("bad", "good"),
    max_tokens=32,
    stride=8,
)
NAMES = Task(
    name="names",
    head="tags",
    columns=Columns(text="tokens", target="tags"),
    labels=("O", "B-PER", "I-PER", "B-LOC", "I-LOC"),
    metrics=("entity_f1",),
    max_tokens=32,
    stride=8,
)
ASK = Task(
    name="ask",
    head="span",
    columns=Columns(text="question", target="answers", pair="context"),
    metrics=("squad_f1",),
    max_tokens=32,
    stride=8,
)
TASKS = (MOOD, NAMES, ASK)


def make_rows(task: Task, count: int, *, start: int = 0) -> list[Record]:
    """Write rows of a tiny task; each is different, and lengths vary."""
    rows = []
    for i in range(start, start + count):
        filler = " ".join(WORDS[(i * 7 + j * 3) % len(WORDS)] for j in range(2 + i % 9))
        if task.head == "classification":
            label = task.labels[i % 2]
            rows.append(Record(f"{filler} {'great joy' if i % 2 else 'poor waste'}", None, 0, task.name, label, str(i)))
        elif task.head == "tags":
            who, where = ("anna", "B-PER"), ("paris" if i % 2 else "berlin", "B-LOC")
            words = [*((word, "O") for word in filler.split()), who, ("in", "O"), where]
            text = " ".join(word for word, _ in words)
            rows.append(Record(text, None, 1, task.name, [tag for _, tag in words], str(i)))
        else:
            place = "paris" if i % 2 else "berlin"
            context = f"{filler} anna was in {place} . {filler}"
            target: dict[str, list[Any]] = {"texts": [place], "starts": [context.index(f"in {place}") + 3]}
            rows.append(Record("where was anna ?", context, 2, task.name, target, str(i)))
    return rows
