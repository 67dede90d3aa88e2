"""Measure the embedded decoder on held-out text and write it with its tokenizer, figures and model card.

Letters: B batch, S positions, V vocabulary.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from mini_card import card
from mini_text import Corpus, Document

END = "<|endoftext|>"
PAD = "<|pad|>"
PROMPTS = (
    "Once upon a time, there was a little girl named Lily. She",
    "Question: Tom has 3 boxes with 4 apples in each box. How many apples does Tom have?\nAnswer:",
    "# Write a function to find the maximum of two numbers.\ndef",
    "The old captain looked at the sea",
)


@dataclass(frozen=True, slots=True)
class Run:
    """What a training run was.

    Attributes:
        plan: its options.
        state: steps, tokens, seconds and rounds it took.
        sources: documents and bytes per source.
        round_tokens: tokens of one round over the training text.
        machine: what it ran on, in words.
    """

    plan: Mapping[str, Any]
    state: Mapping[str, Any]
    sources: Mapping[str, Mapping[str, float]]
    round_tokens: int
    machine: str


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """Return a byte-level BPE in which every digit is a token of its own and no text is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def window_loss(model: Any, ids: Tensor) -> Tensor:
    """Return the loss in nats of every token but the first of each row, flat, for ids ``(B, S + 1)``."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits  # (B, S, V)
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")


def bits_per_byte(
    model: Any, tokenizer: Tokenizer, documents: Sequence[Document], *, bytes_each: int
) -> dict[str, float]:
    """Return bits per byte of text per source, and ``overall`` over all bytes, each document behind an end token.

    Documents follow one another in rows of all the model's positions, cut without overlap; the end tokens themselves
    are not counted. Of every source at most about ``bytes_each`` bytes are read, from its start.
    """
    end = _end(tokenizer)
    nats: dict[str, float] = defaultdict(float)
    size: Counter[str] = Counter()
    streams: dict[str, list[int]] = defaultdict(list)
    for document in documents:
        if size[document.source] < bytes_each:
            text = document.text.encode()[: bytes_each - size[document.source]].decode(errors="ignore")
            size[document.source] += len(text.encode())
            streams[document.source] += [end, *tokenizer.encode(text).ids]
    was_training = model.training
    model.eval()
    for source, stream in streams.items():
        nats[source] = _stream_nats(model, stream, end)
    model.train(was_training)
    scores = {source: nats[source] / math.log(2) / size[source] for source in nats}
    return scores | {"overall": sum(nats.values()) / math.log(2) / sum(size.values())}


def unigram_bits_per_byte(tokenizer: Tokenizer, corpus: Corpus) -> dict[str, float]:
    """Return bits per byte of a model that knows only how frequent each token is in the training text."""
    counts = np.ones(tokenizer.get_vocab_size())
    for encoding in tokenizer.encode_batch([document.text for document in corpus.train]):
        counts += np.bincount(encoding.ids, minlength=len(counts))
    cost = -np.log2(counts / counts.sum())
    bits: dict[str, float] = defaultdict(float)
    size: Counter[str] = Counter()
    for document in corpus.held_out:
        bits[document.source] += float(cost[tokenizer.encode(document.text).ids].sum())
        size[document.source] += len(document.text.encode())
    return {source: bits[source] / size[source] for source in bits} | {"overall": sum(bits.values()) / size.total()}


def export(model: Any, tokenizer: Tokenizer, corpus: Corpus, *, run: Run, out: Path, bytes_each: int) -> None:
    """Write model, tokenizer, ``measured.json`` and model card to ``out``, in the half precision that loses least."""
    shutil.rmtree(out, ignore_errors=True)
    fast: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        model_max_length=model.config.n_positions,
        clean_up_tokenization_spaces=False,
    )
    exact = {name: value.clone() for name, value in model.state_dict().items()}
    scores: dict[str, dict[str, float]] = {
        "float32": bits_per_byte(model, tokenizer, corpus.held_out, bytes_each=bytes_each)
    }
    for dtype in (torch.float16, torch.bfloat16):
        model.load_state_dict({name: value.to(dtype).float() for name, value in exact.items()})
        scores[_name(dtype)] = bits_per_byte(model, tokenizer, corpus.held_out, bytes_each=bytes_each)
    stored = min((torch.float16, torch.bfloat16), key=lambda dtype: scores[_name(dtype)]["overall"])
    model.load_state_dict({name: value.to(stored).float() for name, value in exact.items()})
    samples = [_sample(model, tokenizer, prompt) for prompt in PROMPTS]
    model.generation_config.pad_token_id = model.config.pad_token_id
    model.to(stored).save_pretrained(out)
    fast.save_pretrained(out)
    _compute_in_float32(out / "config.json")
    measured: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "stored_as": _name(stored),
        "bits_per_byte": _rounded(scores[_name(stored)]),
        "bits_per_byte_float32": _rounded(scores["float32"]),
        "bits_per_byte_other": {name: _rounded(score)["overall"] for name, score in scores.items()},
        "bits_per_byte_unigram": _rounded(unigram_bits_per_byte(tokenizer, corpus)),
        "held_out_bytes_limit": bytes_each if bytes_each < 10**9 else None,
        "plan": dict(run.plan),
        "changes": list(run.state["changes"]),
        "steps": run.state["step"],
        "tokens": run.state["tokens"],
        "rounds": round(run.state["tokens"] / run.round_tokens, 2),
        "minutes": round(run.state["seconds"] / 60, 1),
        "cpu_minutes": round(run.state["cpu_seconds"] / 60, 1),
        "machine": run.machine,
        "sources": {name: dict(row) for name, row in run.sources.items()},
        "samples": samples,
    }
    (out / "measured.json").write_text(json.dumps(measured, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "README.md").write_text(card(measured), encoding="utf-8")
    print(f"written to {out}; held-out bits per byte {measured['bits_per_byte']}", flush=True)


def _stream_nats(model: Any, stream: list[int], end: int) -> float:
    """Return the summed loss of a stream's tokens, in rows of all positions, end tokens left out."""
    positions = model.config.n_positions
    device = next(model.parameters()).device
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(stream) - 1, positions):
            ids = torch.tensor([stream[start : start + positions + 1]], device=device)
            counted = ids[0, 1:] != end
            total += window_loss(model, ids)[counted].sum().item()
    return total


def _sample(model: Any, tokenizer: Tokenizer, prompt: str) -> dict[str, str]:
    """Return a prompt with its greedy continuation of at most 60 tokens."""
    model.eval()
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    made = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, do_sample=False, pad_token_id=1
    )
    return {"prompt": prompt, "text": tokenizer.decode(made[0, ids.shape[1] :].tolist(), skip_special_tokens=True)}


def _compute_in_float32(path: Path) -> None:
    """Name float32 in the configuration: half precision saves space in the file and is not for computing."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _end(tokenizer: Tokenizer) -> int:
    return int(tokenizer.encode(END).ids[0])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _rounded(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: round(score, 4) for name, score in scores.items()}
