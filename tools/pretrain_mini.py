"""Train the embedded decoder ``base=mini``: a GPT-2 architecture of our own on openly licensed text.

    python tools/pretrain_mini.py --data ../shared/data --out runs/mini --minutes 60

The learning rate follows the clock (warmup, then cosine to zero at the last minute), so the run ends when the minutes
are over, whatever the machine. ``--resume`` goes on from the last checkpoint. Letters: B batch, S positions, V
vocabulary.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from mini_export import END, Run, bits_per_byte, export, train_tokenizer, window_loss
from mini_text import Corpus, describe, read_corpus

REPEATS = {"mbpp": 3, "ud_ewt": 2, "wikitext": 2}
"""How often small sources come in one round over the text; one time where a source is not named."""
CHANGEABLE = {"lr", "beta2", "minutes"}
"""Options that a resumed run may change; the card then names the values until that minute."""
SAVE_SECONDS = 240.0
LOG_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is trained, and how.

    Attributes:
        minutes: time for the training loop, reading and export not counted.
        vocabulary: entries of the tokenizer, V.
        layers, width, heads, positions: the shape of the model.
        batch_tokens: tokens per optimizer step.
        short: positions per row for the first part of the run; attention costs less there.
        short_share: share of the time in which rows are short.
        lr: peak learning rate.
        warmup: share of the time over which the learning rate rises.
        decay: weight decay of matrices.
        beta2: memory of squared gradients; the fewer tokens a step, the longer it must be.
        seed: of the weights and of the order of the text.
    """

    minutes: float
    vocabulary: int
    layers: int
    width: int
    heads: int
    positions: int
    batch_tokens: int
    short: int
    short_share: float
    lr: float
    warmup: float
    decay: float
    beta2: float
    seed: int


@dataclass(slots=True)
class State:
    """How far a run is, with the options that a resumed run changed (`changes`); all of it is in a checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    rounds: int = 0
    place: int = 0
    changes: list[dict[str, float]] = field(default_factory=list)


def main() -> None:
    """Read the text, train, measure and write the model."""
    plan, args = _arguments()
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    corpus = read_corpus(args.data)
    tokenizer = _tokenizer(corpus, args.out / "tokenizer.json", plan.vocabulary)
    pieces = encode(corpus, tokenizer)
    print(f"{sum(len(piece) for piece in pieces)} tokens in a round over the text", flush=True)
    model = build(plan)
    nn.Module.to(model, device)
    optimizer = _optimizer(model, plan)
    state = State()
    checkpoint = args.out / "checkpoint.pt"
    if args.resume and checkpoint.is_file():
        state = _load(checkpoint, model, optimizer, plan, device)
    train(model, optimizer, pieces, plan=plan, state=state, corpus=corpus, tokenizer=tokenizer, checkpoint=checkpoint)
    run = Run(
        plan=asdict(plan),
        state=asdict(state),
        sources=describe(corpus),
        round_tokens=sum(len(piece) for piece in pieces),
        machine=_machine(device),
    )
    export(model.cpu(), tokenizer, corpus, run=run, out=args.out / "model", bytes_each=args.measure_bytes)


def build(plan: Plan) -> GPT2LMHeadModel:
    """Return the model with random weights; ``gelu_pytorch_tanh`` is GPT-2's own function in one fused step."""
    torch.manual_seed(plan.seed)
    config = GPT2Config(
        vocab_size=plan.vocabulary,
        n_positions=plan.positions,
        n_embd=plan.width,
        n_layer=plan.layers,
        n_head=plan.heads,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        tie_word_embeddings=True,
    )
    return GPT2LMHeadModel(config)


def encode(corpus: Corpus, tokenizer: Tokenizer) -> list[NDArray[np.uint16]]:
    """Return every training document as token ids behind an end-of-text token, small sources repeated."""
    end = tokenizer.token_to_id(END)
    pieces: list[NDArray[np.uint16]] = []
    for document, encoding in zip(
        corpus.train, tokenizer.encode_batch([document.text for document in corpus.train]), strict=True
    ):
        ids = np.array([end, *encoding.ids], dtype=np.uint16)
        pieces.extend([ids] * REPEATS.get(document.source, 1))
    return pieces


def batches(pieces: list[NDArray[np.uint16]], plan: Plan, state: State) -> Iterator[torch.Tensor]:
    """Yield rows of ids ``(B, S + 1)`` for ever; each round has its own order, and rows of S positions as time asks.

    A round is laid out in windows of the longest row; a short row is a part of such a window, so `State.place`
    means the same whatever the length.
    """
    rows = plan.batch_tokens // plan.positions
    while True:
        generator = np.random.default_rng([plan.seed, state.rounds])
        stream = np.concatenate([pieces[place] for place in generator.permutation(len(pieces))])
        stream = stream[int(generator.integers(plan.positions)) :]
        order = generator.permutation((len(stream) - 1) // plan.positions)
        while state.place + rows <= len(order):
            starts = order[state.place : state.place + rows] * plan.positions
            state.place += rows
            length = plan.short if state.seconds < plan.short_share * plan.minutes * 60 else plan.positions
            cuts = [start + offset for start in starts for offset in range(0, plan.positions, length)]
            windows = np.stack([stream[cut : cut + length + 1] for cut in cuts])
            yield torch.from_numpy(windows.astype(np.int64))
        state.rounds, state.place = state.rounds + 1, 0


def train(
    model: GPT2LMHeadModel,
    optimizer: torch.optim.Optimizer,
    pieces: list[NDArray[np.uint16]],
    *,
    plan: Plan,
    state: State,
    corpus: Corpus,
    tokenizer: Tokenizer,
    checkpoint: Path,
) -> None:
    """Train until the minutes are over; prints the loss, saves checkpoints, and measures held-out text at each."""
    budget = plan.minutes * 60
    device = next(model.parameters()).device
    model.train()
    saved = logged = state.seconds
    mean = 0.0
    for batch in batches(pieces, plan, state):
        if state.seconds >= budget:
            break
        began, cpu_began = time.perf_counter(), time.process_time()
        rate = learning_rate(state.seconds / budget, plan)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = window_loss(model, batch.to(device)).mean()
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        value = loss.item()
        if not math.isfinite(value):
            raise SystemExit(f"the loss is {value} at step {state.step}; start again with a lower --lr than {plan.lr}")
        mean = value if mean == 0.0 else 0.98 * mean + 0.02 * value
        state.step += 1
        state.tokens += batch.shape[0] * (batch.shape[1] - 1)
        state.seconds += time.perf_counter() - began
        state.cpu_seconds += time.process_time() - cpu_began
        if state.seconds - logged >= LOG_SECONDS:
            logged = state.seconds
            print(
                f"{state.seconds:7.0f}s step {state.step} tokens {state.tokens} loss {mean:.4f} lr {rate:.2e}",
                flush=True,
            )
        if state.seconds - saved >= SAVE_SECONDS:
            saved = state.seconds
            _save(checkpoint, model, optimizer, plan, state)
            scores = bits_per_byte(model, tokenizer, corpus.held_out, bytes_each=8000)
            print("  held-out bits per byte:", {name: round(score, 4) for name, score in scores.items()}, flush=True)
    _save(checkpoint, model, optimizer, plan, state)


def learning_rate(progress: float, plan: Plan) -> float:
    """Return the learning rate after a share of the time, 0 to 1."""
    warm = min(1.0, progress / plan.warmup) if plan.warmup else 1.0
    rest = max(0.0, progress - plan.warmup) / (1.0 - plan.warmup)
    return plan.lr * max(1e-3, warm) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, rest)))


def _optimizer(model: GPT2LMHeadModel, plan: Plan) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": plan.decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.lr, betas=(0.9, plan.beta2), fused=True)


def _tokenizer(corpus: Corpus, path: Path, vocabulary: int) -> Tokenizer:
    """Return the tokenizer of this run, trained once."""
    if path.is_file():
        tokenizer = Tokenizer.from_file(str(path))
        if tokenizer.get_vocab_size() == vocabulary:
            return tokenizer
    tokenizer = train_tokenizer([document.text for document in corpus.train], vocabulary)
    tokenizer.save(str(path))
    return tokenizer


def _save(path: Path, model: GPT2LMHeadModel, optimizer: torch.optim.Optimizer, plan: Plan, state: State) -> None:
    content: dict[str, Any] = {
        "plan": asdict(plan),
        "state": asdict(state),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    part = path.with_suffix(".part")
    torch.save(content, part)
    part.replace(path)


def _load(
    path: Path,
    model: GPT2LMHeadModel,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    device: torch.device,
) -> State:
    content = torch.load(path, map_location=device, weights_only=True)
    changed = {name: value for name, value in asdict(plan).items() if content["plan"][name] != value}
    wrong = sorted(changed.keys() - CHANGEABLE)
    if wrong:
        raise SystemExit(
            f"{path} was made with other values of {', '.join(wrong)}; give the same ones, or another --out"
        )
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    state = State(**content["state"])
    if changed:
        state.changes.append(
            {"minute": round(state.seconds / 60, 1), **{name: content["plan"][name] for name in changed}}
        )
        for group in optimizer.param_groups:
            group["betas"] = (0.9, plan.beta2)
    return state


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"one {torch.cuda.get_device_name(device)}"
    return f"CPU ({os.uname().machine}), {torch.get_num_threads()} thread(s), bfloat16 matrix products"


def _arguments() -> tuple[Plan, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with lm_text, gsm8k, mbpp and ud_ewt")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint.pt, tokenizer.json and model/")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/checkpoint.pt if there is one")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--positions", type=int, default=512)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--short", type=int, default=256, help="positions per row at first")
    parser.add_argument("--short-share", type=float, default=0.7, help="share of the time with short rows")
    parser.add_argument("--lr", type=float, default=1.1e-3)
    parser.add_argument("--warmup", type=float, default=0.02, help="share of the time")
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--beta2", type=float, default=0.99)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure-bytes", type=int, default=10**9, help="held-out bytes per source at the end")
    args = parser.parse_args()
    if args.positions % args.short or args.batch_tokens % args.positions:
        parser.error("--short must divide --positions, and --positions must divide --batch-tokens")
    fields = Plan.__dataclass_fields__
    return Plan(**{name: value for name, value in vars(args).items() if name in fields}), args


if __name__ == "__main__":
    main()
