"""Rows of many experts in one batch: the bank beside the bare base and PEFT's two ways.

PEFT's ``adapter_names`` runs a mixed batch by looping over adapters in every layer; its ``set_adapter`` way runs each
expert's rows as a batch of their own. Goal: the bank costs at most 1.15 times the bare base where the batch has 512
tokens or more, is always ahead of PEFT, and no slower with 1,000 experts loaded than with 16.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertModel

from _common import arguments, finish, in_turn, row
from _experts import copy_to_peft, mount_random
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.config import BaseSpec
from dynamorouter.model.lora.gates import RowGate
from dynamorouter.model.lora.mount import Mounted
from dynamorouter.model.text.tokenize import Batch

SHAPES = {"6x384": (6, 384, 12, 1536), "12x768": (12, 768, 12, 3072)}
TARGETS = {"all-linear": ["query", "key", "value", "dense"], "query-value": ["query", "value"]}
BATCHES = {16: ((16, 64), (1, 32)), 32: ((32, 32), (1, 32))}
"""Rows and positions, by the number of experts loaded."""
RANK, SCALING = 8, 2.0
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class NoTokenizer:
    """The benchmark makes token ids itself."""

    pad_token_id = 0

    @property
    def backend_tokenizer(self) -> Any:
        """Return an empty tokenizer."""
        from tokenizers import Tokenizer, models

        return Tokenizer(models.WordLevel({"[PAD]": 0}, unk_token="[PAD]"))


def make_model(shape: str) -> BertModel:
    """Make a random encoder of MiniLM's or BERT's shape, the same each time."""
    layers, width, heads, inner = SHAPES[shape]
    torch.manual_seed(0)
    config = BertConfig(num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, intermediate_size=inner)
    return BertModel(config, add_pooling_layer=False).eval()


def ours(shape: str, targets: str, experts: int) -> Mounted:
    """Return random experts over a base."""
    base = Base(BaseSpec(name=shape, path=shape, special_in_text="allow"), make_model(shape).to(DEVICE), NoTokenizer())
    return mount_random(base, TARGETS[targets], experts=experts, rank=RANK, scaling=SCALING)


def theirs(shape: str, targets: str, mounted: Mounted) -> Any:
    """Return a PEFT model with the same experts."""
    config = LoraConfig(r=RANK, lora_alpha=RANK * SCALING, target_modules=TARGETS[targets], init_lora_weights=False)
    model = get_peft_model(make_model(shape), config, adapter_name="e0")
    for i in range(1, mounted.capacity):
        model.add_adapter(f"e{i}", config)
    copy_to_peft(mounted, model)
    return model.eval().to(DEVICE)


def case(
    shape: str, targets: str, mounted: Mounted, peft: Any | None, rows: int, size: int, rounds: int
) -> dict[str, Any]:
    """Time one batch all ways, after checking that all ways give the same hidden states."""
    base, experts = mounted.base, mounted.capacity
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 30000, (rows, size), generator=generator).to(DEVICE)
    batch = Batch(ids, torch.zeros_like(ids), torch.ones_like(ids))
    chosen = torch.randperm(max(experts, rows), generator=generator)[:rows] % experts
    gate = RowGate(chosen.to(DEVICE))
    names = [f"e{i}" for i in chosen.tolist()]
    inputs = {"input_ids": ids, "attention_mask": batch.mask, "token_type_ids": batch.types}

    def one_pass() -> torch.Tensor:
        return peft(**inputs, adapter_names=names).last_hidden_state  # type: ignore[no-any-return]

    def by_groups() -> torch.Tensor:
        out = torch.empty(rows, size, base.width, device=DEVICE)
        for name in dict.fromkeys(names):
            at = torch.tensor([i for i, other in enumerate(names) if other == name], device=DEVICE)
            peft.set_adapter(name)
            out[at] = peft(**{key: value[at] for key, value in inputs.items()}).last_hidden_state
        return out

    works = {"base": lambda: base.forward(batch, None), "ours": lambda: base.forward(batch, gate)}
    if peft is not None:
        works |= {"peft adapter_names": one_pass, "peft set_adapter": by_groups}
    with torch.inference_mode():
        found = {name: work() for name, work in works.items()}
        gap = max(float((found["ours"] - other).abs().max()) for name, other in found.items() if name != "base")
        times = in_turn(works, rounds=rounds)
    limit = 1.15 if rows * size >= 512 else None
    return row(f"{shape} {targets} E={experts} {rows}x{size}", times, limit=limit, largest_gap_to_peers=gap)


def main() -> None:
    """Run the benchmark."""
    args = arguments("mixed_batch", __doc__ or "").parse_args()
    rounds = 7
    rows = []
    for shape in ["6x384"] if args.quick else list(SHAPES):
        for targets in TARGETS:
            for experts, sizes in BATCHES.items():
                if args.quick and experts != 16:
                    continue
                mounted = ours(shape, targets, experts)
                peft = theirs(shape, targets, mounted)
                for size in sizes[: 1 if args.quick or (experts == 16 and targets == "query-value") else 2]:
                    rows.append(case(shape, targets, mounted, peft, *size, rounds))
                    print(rows[-1]["case"], f"{rows[-1]['over_base']:.3f}", flush=True)
                del mounted, peft
    rows.append(many(9 if args.quick else 15))
    finish(args.out, rows)


def many(rounds: int) -> dict[str, Any]:
    """Time 1,000 loaded experts against 16: ``base`` is the bank with 16 here."""
    few, full = ours("6x384", "all-linear", 16), ours("6x384", "all-linear", 1000)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 30000, (16, 64), generator=generator).to(DEVICE)
    batch = Batch(ids, torch.zeros_like(ids), torch.ones_like(ids))
    gates = {n: RowGate(torch.randperm(n, generator=generator)[:16].to(DEVICE)) for n in (16, 1000)}
    with torch.inference_mode():
        times = in_turn(
            {"base": lambda: few.base.forward(batch, gates[16]), "ours": lambda: full.base.forward(batch, gates[1000])},
            rounds=rounds,
        )
    return row("6x384 all-linear 16x64: 1,000 experts loaded (base: 16 loaded)", times, limit=1.05)


if __name__ == "__main__":
    main()
