"""Text for rows of many experts in one batch: time per token beside the bare base and PEFT's two ways.

16 rows with prompts of 9 to 24 tokens use 8 experts; all write greedily, and none may end before its last token. A
time is that of the whole batch for one token of each row, prompts included. ``base`` is the same loop without experts.
PEFT's ``adapter_names`` generates the mixed batch in one go; its ``set_adapter`` way generates each expert's rows as a
batch of their own. Goal: at most 1.25 times the bare base, and ahead of PEFT.

A second group times the prompts alone, up to the first token, when a router reads the hidden states of a block below
the experts: ``ours`` goes on from there, the peer reads the prompts on the bare base first and then again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from _common import arguments, finish, in_turn, row
from _experts import copy_to_peft, mount_random
from dynamorouter.config.compose import compose
from dynamorouter.inference.generation.decoding import read_prompts
from dynamorouter.inference.generation.generate import generate
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.config import BaseSpec
from dynamorouter.model.lora.gates import RowGate
from dynamorouter.model.lora.mount import Mounted
from dynamorouter.tasks.task import Generation

TARGETS = {"all-linear": ["c_attn", "c_proj", "c_fc"], "attention": ["c_attn", "attn.c_proj"]}
ROWS, EXPERTS, RANK, SCALING, LIMIT = 16, 8, 8, 2.0, 1.25
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Greedy = dict[str, Any]


class NoText:
    """The benchmark makes token ids itself, and times no detokenisation."""

    pad_token_id = 0
    eos_token_id = None

    class backend_tokenizer:  # noqa: N801 - named as the tokenizer names it
        """Decodes to nothing."""

        @staticmethod
        def to_str() -> str:
            """Return an empty tokenizer."""
            from tokenizers import Tokenizer, models

            return str(Tokenizer(models.WordLevel({"[PAD]": 0}, unk_token="[PAD]")).to_str())

        @staticmethod
        def decode(ids: object, *, skip_special_tokens: bool) -> str:
            """Return no text."""
            return ""


def random_model(layers: int, width: int, heads: int, vocabulary: int) -> GPT2LMHeadModel:
    """Make a random decoder, the same each time; weights larger than usual make its choices clear."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=layers, n_embd=width, n_head=heads, vocab_size=vocabulary, n_positions=512, initializer_range=0.06
    )
    return GPT2LMHeadModel(config).eval()


def mini_model() -> tuple[str, GPT2LMHeadModel]:
    """Return the project's own decoder, or where it is not installed a random one of 6 x 256."""
    place = Path(compose("quickstart", ["base=mini"]).base.locate())
    if (place / "config.json").is_file():
        return "mini", GPT2LMHeadModel.from_pretrained(place, dtype=torch.float32).eval()
    return "random 6x256", random_model(6, 256, 8, 4096)


def theirs(model: Any, mounted: Mounted, targets: list[str]) -> Any:
    """Return a PEFT model with the same experts."""
    config = LoraConfig(
        r=RANK,
        lora_alpha=RANK * SCALING,
        target_modules=targets,
        init_lora_weights=False,
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
    )
    peft = get_peft_model(model, config, adapter_name="e0")
    for i in range(1, EXPERTS):
        peft.add_adapter(f"e{i}", config)
    copy_to_peft(mounted, peft, prefix=mounted.base.prefix)
    return peft.eval().to(DEVICE)


def padded_left(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    """Return the prompts as ``generate`` of transformers wants them."""
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids, device=DEVICE), "attention_mask": torch.tensor(mask, device=DEVICE)}


def generated(peft: Any, prompts: list[list[int]], tokens: int, **options: Any) -> list[list[int]]:
    """Let PEFT's model generate; nothing ends a text before its last token."""
    greedy: Greedy = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    inputs = padded_left(prompts)
    with torch.inference_mode():
        rows = peft.generate(**inputs, **greedy, **options)
    return [ids[inputs["input_ids"].shape[1] :] for ids in rows.tolist()]


def case(name: str, model: Callable[[], Any], targets: str, tokens: int, rounds: int) -> dict[str, Any]:
    """Time one base all ways, after a look at how many tokens all ways agree on."""
    base = Base(BaseSpec(name=name, path=name, special_in_text="allow"), model().to(DEVICE), NoText())
    mounted = mount_random(base, TARGETS[targets], experts=EXPERTS, rank=RANK, scaling=SCALING)
    prompts, chosen = make_prompts(base)
    peft, bare = theirs(model(), mounted, TARGETS[targets]), model().to(DEVICE)
    names = [f"e{i}" for i in chosen]
    options = Generation(max_new_tokens=tokens, min_new_tokens=tokens)

    def ours(experts: list[int] | None) -> list[list[int]]:
        gate = None if experts is None else RowGate(torch.tensor(experts, device=DEVICE))
        return [list(result.ids) for result in generate(base, prompts, gate, options)]

    def by_groups() -> list[list[int]]:
        out: list[list[int]] = [[] for _ in prompts]
        for name in dict.fromkeys(names):
            peft.set_adapter(name)
            group = [i for i, other in enumerate(names) if other == name]
            for i, ids in zip(group, generated(peft, [prompts[i] for i in group], tokens), strict=True):
                out[i] = ids
        return out

    works: dict[str, Callable[[], list[list[int]]]] = {
        "base": lambda: ours(None),
        "ours": lambda: ours(chosen),
        "peft adapter_names": lambda: generated(peft, prompts, tokens, adapter_names=names),
        "peft set_adapter": by_groups,
        "transformers, bare": lambda: generated(bare, prompts, tokens),
    }
    found = {key: work() for key, work in works.items()}
    agreed = {key: _share(found["ours"], found[key]) for key in ("peft adapter_names", "peft set_adapter")}
    agreed["transformers, bare"] = _share(found["base"], found["transformers, bare"])
    times = {key: [value / tokens for value in values] for key, values in in_turn(works, rounds=rounds).items()}
    bare_times = times.pop("transformers, bare")
    made = row(f"{name}, {targets}, {tokens} tokens", times, limit=LIMIT, same_tokens=agreed)
    return {**made, "transformers_bare_ms": sorted(bare_times)[len(bare_times) // 2]}


def _share(one: list[list[int]], other: list[list[int]]) -> float:
    same = [a == b for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(same) / len(same)


def make_prompts(base: Base) -> tuple[list[list[int]], list[int]]:
    """Return the prompts, and the expert of each."""
    generator = torch.Generator().manual_seed(2)
    size = int(base.config.vocab_size)
    lengths = [9 + (5 * i) % 16 for i in range(ROWS)]
    prompts = [torch.randint(1, size - 1, (length,), generator=generator).tolist() for length in lengths]
    return prompts, [(3 * i + i // EXPERTS) % EXPERTS for i in range(ROWS)]


def reading(name: str, model: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Time the prompts alone when a router looks at the middle of the base, and the experts begin there."""
    base = Base(BaseSpec(name=name, path=name, special_in_text="allow"), model().to(DEVICE), NoText())
    middle = base.depth // 2
    _mounted = mount_random(base, TARGETS["all-linear"], experts=EXPERTS, rank=RANK, scaling=SCALING, trunk=middle)
    prompts, chosen = make_prompts(base)
    gate = RowGate(torch.tensor(chosen, device=DEVICE))
    first = Generation(max_new_tokens=1)

    def once() -> object:
        return generate(base, prompts, gate, first, reading=read_prompts(base, prompts, middle))

    def twice() -> object:
        read_prompts(base, prompts, middle)
        return generate(base, prompts, gate, first)

    works = {
        "base": lambda: generate(base, prompts, None, first),
        "ours": once,
        "a pass for routing, then another": twice,
    }
    return row(f"{name}, prompts alone, router at block {middle}", in_turn(works, rounds=rounds), limit=LIMIT)


def main() -> None:
    """Run the benchmark."""
    args = arguments("generation", __doc__ or "").parse_args()
    name, mini = mini_model()
    state = mini.state_dict()

    def small() -> GPT2LMHeadModel:
        made = GPT2LMHeadModel(mini.config).eval()
        made.load_state_dict(state)
        return made

    def large() -> GPT2LMHeadModel:
        return random_model(12, 768, 12, 50257)

    rounds = 3 if args.quick else 7
    rows = []
    for targets in TARGETS:
        rows.append(case(name, small, targets, 16 if args.quick else 48, rounds))
        print(rows[-1]["case"], f"{rows[-1]['over_base']:.3f}", flush=True)
    rows.append(reading(name, small, rounds))
    if not args.quick:
        for targets in TARGETS:
            rows.append(case("random 12x768", large, targets, 24, 5))
            print(rows[-1]["case"], f"{rows[-1]['over_base']:.3f}", flush=True)
        rows.append(reading("random 12x768", large, 5))
    finish(args.out, rows)


if __name__ == "__main__":
    main()
