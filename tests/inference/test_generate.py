"""Laws of generation: a row in a mixed batch is written as PEFT writes it alone, however it is batched and read."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dynamorouter.errors import ConfigError
from dynamorouter.inference.generation.decoding import DecodeState, read_prompts
from dynamorouter.inference.generation.generate import TextDelta, generate, stream
from dynamorouter.inference.generation.sampling import Sampler
from dynamorouter.inference.generation.streaming import TextStream
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.config import BaseSpec
from dynamorouter.model.lora.gates import RowGate, SoftGate
from dynamorouter.model.lora.mount import mount
from dynamorouter.model.text.tokenize import Batch
from dynamorouter.tasks.task import Generation
from dynamorouter.utils.explain import changed, checked
from support.banks import random_change
from support.tinylm import MODELS, VOCABULARY, add_experts, alone, load_lm, make_prompts

SHARED = Path(os.environ.get("DYNAMOROUTER_SHARED", Path(__file__).parents[3] / "shared"))
STORIES = SHARED / "models" / "stories260k"
CHOSEN = [0, 1, -1, 2, 1, 0]
TOKENS = 10
Folder = Callable[[str], Path]


def ids_of(base: Base, prompts: list[list[int]], experts: list[int], **options: object) -> list[list[int]]:
    gate = RowGate(torch.tensor(experts))
    return [list(row.ids) for row in generate(base, prompts, gate, Generation(**options))]  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", list(MODELS))
def test_mixed_batch_says_what_peft_says_row_by_row(lm_folder: Folder, tmp_path: Path, architecture: str) -> None:
    base = load_lm(lm_folder(architecture))
    oracle, _mounted = add_experts(base, tmp_path, architecture, 3)
    prompts = make_prompts()
    want = [alone(oracle, prompt, expert, tokens=TOKENS) for prompt, expert in zip(prompts, CHOSEN, strict=True)]
    assert ids_of(base, prompts, CHOSEN, max_new_tokens=TOKENS) == want
    same = [alone(oracle, prompts[0], expert, tokens=TOKENS) for expert in (-1, 0, 1, 2)]
    assert len({tuple(said) for said in same}) == 4  # the experts do make a difference
    assert ids_of(base, prompts[:2], [1, 1], max_new_tokens=TOKENS) == [
        alone(oracle, prompt, 1, tokens=TOKENS) for prompt in prompts[:2]
    ]


@pytest.mark.parametrize("architecture", list(MODELS))
@pytest.mark.parametrize("depth", [1, 2])
def test_a_trunk_that_routing_has_read_says_the_same(
    lm_folder: Folder, tmp_path: Path, architecture: str, depth: int
) -> None:
    base = load_lm(lm_folder(architecture))
    _, mounted = add_experts(base, tmp_path, architecture, 3, first_block=0 if base.kind == "seq2seq" else depth)
    if base.kind == "seq2seq":
        low = tuple(f"{base.blocks_name}.{i}." for i in range(depth))
        layers = {name: 3 for name in mounted.banks if not name.startswith(low)}
        mounted = mount(base, [random_change(base, f"x{i}", layers) for i in range(3)])
    prompts = make_prompts()
    want = ids_of(base, prompts, CHOSEN, max_new_tokens=TOKENS)
    options = Generation(max_new_tokens=TOKENS)
    reading = read_prompts(base, prompts, depth, keep=[0])
    assert sorted(reading.states) == [0, depth]
    got = generate(base, prompts, RowGate(torch.tensor(CHOSEN)), options, reading=reading)
    assert [list(row.ids) for row in got] == want
    deeper = read_prompts(base, prompts, depth=base.depth - 1, keep=[depth])
    some = [4, 1, 3]
    part = deeper.select(some).at(depth)
    got = generate(
        base, [prompts[i] for i in some], RowGate(torch.tensor([CHOSEN[i] for i in some])), options, reading=part
    )
    assert [list(row.ids) for row in got] == [want[i] for i in some]
    got = generate(base, prompts, RowGate(torch.tensor(CHOSEN)), options, reading=deeper.at(0))
    assert [list(row.ids) for row in got] == want
    with pytest.raises(ConfigError, match=rf"read up to block {base.depth - 1}.*keep=\[9\]"):
        deeper.at(9)


@pytest.mark.parametrize("architecture", list(MODELS))
def test_padding_and_neighbours_change_no_logits(lm_folder: Folder, tmp_path: Path, architecture: str) -> None:
    base = load_lm(lm_folder(architecture))
    _mounted = add_experts(base, tmp_path, architecture, 3)
    prompts, forced = make_prompts(), torch.randint(4, VOCABULARY, (len(CHOSEN), 6))

    def logits(rows: list[int]) -> torch.Tensor:
        reading = read_prompts(base, [prompts[i] for i in rows], 0)
        gate = RowGate(torch.tensor([CHOSEN[i] for i in rows]))
        with torch.inference_mode():
            run, hidden = DecodeState.begin(base, reading, gate)
            found = [hidden, *(run.step(forced[rows, t]) for t in range(forced.shape[1]))]
        return base.logits(torch.stack(found, dim=1))

    whole = logits(list(range(len(CHOSEN))))
    for row in range(len(CHOSEN)):
        torch.testing.assert_close(whole[row], logits([row])[0], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2", "t5"])
def test_mixtures_are_weighed_sums_of_experts(lm_folder: Folder, tmp_path: Path, architecture: str) -> None:
    base = load_lm(lm_folder(architecture))
    _mounted = add_experts(base, tmp_path, architecture, 3)
    prompts = make_prompts([4, 7])
    weights = torch.tensor([[0.25, 0.75], [0.6, 0.4]])
    sparse = RowGate(torch.tensor([[0, 2], [1, -1]]), weights)
    dense = SoftGate(torch.tensor([[0.25, 0.0, 0.75], [0.0, 0.6, 0.0]]))
    options = Generation(max_new_tokens=TOKENS)
    one, other = generate(base, prompts, sparse, options), generate(base, prompts, dense, options)
    assert one == other
    assert one != generate(base, prompts, RowGate(torch.tensor([0, 1])), options)


def test_rows_that_are_done_leave_and_change_nothing(lm_folder: Folder, tmp_path: Path) -> None:
    for architecture in ("gpt2", "llama", "bart"):
        base = load_lm(lm_folder(architecture))
        _mounted = add_experts(base, tmp_path / architecture, architecture, 3)
        prompts, sizes = make_prompts(), [2, 20, 9, 1, 14, 5]
        options = [Generation(max_new_tokens=size) for size in sizes]
        got = generate(base, prompts, RowGate(torch.tensor(CHOSEN)), options)
        assert [row.finish_reason for row in got] == ["length"] * len(sizes)
        for i, size in enumerate(sizes):
            assert [list(got[i].ids)] == ids_of(base, [prompts[i]], [CHOSEN[i]], max_new_tokens=size)


def test_a_text_ends_by_itself_but_not_before_its_least_length(lm_folder: Folder, tmp_path: Path) -> None:
    base = load_lm(lm_folder("gpt2"))
    _mounted = add_experts(base, tmp_path, "gpt2", 3)
    prompts = make_prompts()
    long = ids_of(base, prompts, CHOSEN, max_new_tokens=TOKENS)
    base.eos_ids = frozenset({long[0][4], long[1][2]})
    cut = [min((said.index(end) for end in base.eos_ids if end in said), default=TOKENS) for said in long]
    got = generate(base, prompts, RowGate(torch.tensor(CHOSEN)), Generation(max_new_tokens=TOKENS))
    assert [list(row.ids) for row in got] == [said[:at] for said, at in zip(long, cut, strict=True)]
    assert [row.finish_reason for row in got] == ["stop" if at < TOKENS else "length" for at in cut]
    for row in generate(
        base, prompts, RowGate(torch.tensor(CHOSEN)), Generation(max_new_tokens=TOKENS, min_new_tokens=8)
    ):
        assert len(row.ids) >= 8 and not base.eos_ids & set(row.ids)


@pytest.mark.parametrize("architecture", ["llama", "pegasus"])
def test_pieces_make_the_whole_and_hold_whole_characters(lm_folder: Folder, tmp_path: Path, architecture: str) -> None:
    base = load_lm(lm_folder(architecture))
    _mounted = add_experts(base, tmp_path, architecture, 3)
    prompts = make_prompts()
    gate, options = RowGate(torch.tensor(CHOSEN)), Generation(max_new_tokens=30)
    want = generate(base, prompts, gate, options)
    pieces: list[TextDelta] = []
    assert generate(base, prompts, gate, options, on_piece=pieces.append) == want
    for i, row in enumerate(want):
        mine = [piece for piece in pieces if piece.row == i]
        assert "".join(piece.text for piece in mine) == row.text
        assert row.text == base.tokenizer.decode(list(row.ids), skip_special_tokens=True).rstrip("\ufffd")
        assert [piece.result for piece in mine] == [*[None] * (len(mine) - 1), row]
    assert len(pieces) > 30
    assert next(stream(base, prompts, gate, options)) == pieces[0]


def test_a_stop_text_ends_a_row_wherever_tokens_part(lm_folder: Folder, tmp_path: Path) -> None:
    base = load_lm(lm_folder("gpt2"))
    _mounted = add_experts(base, tmp_path, "gpt2", 3)
    base.eos_ids = frozenset()
    prompts, gate = make_prompts(), RowGate(torch.tensor(CHOSEN))
    long = generate(base, prompts, gate, Generation(max_new_tokens=24))
    clean = [i for i, row in enumerate(long) if len(row.text) > 12]
    assert clean
    stop = long[clean[0]].text[7:10]
    options = Generation(max_new_tokens=24, stop=("never said", stop))
    pieces: list[TextDelta] = []
    got = generate(base, prompts, gate, options, on_piece=pieces.append)
    assert got == generate(base, prompts, gate, options)
    for i, (row, whole) in enumerate(zip(got, long, strict=True)):
        assert row.text == whole.text.split(stop)[0]
        assert row.finish_reason == ("stop" if stop in whole.text else "length")
        assert "".join(piece.text for piece in pieces if piece.row == i) == row.text
    assert got[clean[0]].finish_reason == "stop"


def test_text_stream_waits_for_characters_and_for_stop_texts() -> None:
    def decode(ids: object) -> str:
        return bytes(ids).decode(errors="replace")  # type: ignore[call-overload, no-any-return]

    told = TextStream(decode, ["END", "NDX"])
    said = "aé日 ENQ enEN".encode() + "日".encode()[:2]
    pieces = [told.push([byte]) for byte in said]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) == "aé日 ENQ en" and told.close() == "EN" and told.text == "aé日 ENQ enEN"
    told = TextStream(decode, ["END", "NDX"])
    assert [told.push([byte]) for byte in b"xENEND"] == ["x", "", "", "EN", "", ""] and told.stopped
    assert (told.text, told.close()) == ("xEN", "")
    told = TextStream(decode, ["日"])
    assert told.push(list("ab日c".encode())) == "ab" and told.stopped


def test_sampling_repeats_and_does_not_see_its_neighbours(lm_folder: Folder, tmp_path: Path) -> None:
    base = load_lm(lm_folder("llama"))
    _mounted = add_experts(base, tmp_path, "llama", 3)
    prompts = make_prompts()
    kinds = [
        Generation(max_new_tokens=TOKENS, temperature=3.0),
        Generation(max_new_tokens=TOKENS, temperature=3.0, top_k=5),
        Generation(max_new_tokens=TOKENS, temperature=3.0, top_p=0.5, seed=4),
        Generation(max_new_tokens=TOKENS),
        Generation(max_new_tokens=TOKENS, temperature=3.0, top_k=9, top_p=0.8),
        Generation(max_new_tokens=TOKENS, temperature=1e-3),
    ]
    gate = RowGate(torch.tensor(CHOSEN))
    whole = generate(base, prompts, gate, kinds)
    assert whole == generate(base, prompts, gate, kinds)
    for i, own in enumerate(kinds):
        assert generate(base, [prompts[i]], RowGate(torch.tensor([CHOSEN[i]])), own) == [whole[i]]
    other = [Generation(max_new_tokens=TOKENS, temperature=3.0, seed=seed) for seed in range(6)]
    assert len({generate(base, prompts[:1], None, own)[0].ids for own in other}) == 6
    assert list(whole[5].ids) == ids_of(base, prompts[5:], CHOSEN[5:], max_new_tokens=TOKENS)[0]  # as good as greedy


def test_draws_follow_the_distribution_that_the_options_leave() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -50.0])
    shares = (logits / 1.5).softmax(0)
    for options, kept in (
        ({}, [0, 1, 2, 3]),
        ({"top_k": 2}, [0, 1]),
        ({"top_p": 0.6}, [0, 1]),  # the likeliest alone has .54
        ({"top_k": 3, "top_p": 0.5}, [0]),  # of the three it has .56
    ):
        own = Generation(temperature=1.5, **options)  # type: ignore[arg-type]
        sampler = Sampler([own] * 4000, [[i] for i in range(4000)], ends=[])
        drawn = sampler.choose(logits.expand(4000, -1), range(4000), written=[[]] * 4000)
        want = torch.zeros(5)
        want[kept] = shares[kept] / shares[kept].sum()
        torch.testing.assert_close(drawn.bincount(minlength=5) / 4000, want, atol=0.03, rtol=0)


def test_a_temperature_near_zero_is_greedy() -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0)) * 10
    own = Generation(temperature=1e-38)
    drawn = Sampler([own] * 5, [[i] for i in range(5)], ends=[]).choose(logits, range(5), written=[[]] * 5)
    assert drawn.tolist() == logits.argmax(1).tolist()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_penalties_are_those_of_transformers_on_what_is_written(size: int) -> None:
    from transformers import LogitsProcessorList, NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

    generator = torch.Generator().manual_seed(size)
    rows = [torch.randint(0, 6, (length,), generator=generator).tolist() for length in (0, 1, 2, 9, 30)]
    logits = torch.randn(len(rows), 40, generator=generator)
    own = Generation(no_repeat_ngram=size, repetition_penalty=1.7)
    options = [own, own, own, own, Generation()]  # the last row is left as it is
    theirs: Any = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.7), NoRepeatNGramLogitsProcessor(size)])
    want = [
        theirs(torch.LongTensor([said]), logits[i : i + 1])[0] if said and i < 4 else logits[i]
        for i, said in enumerate(rows)
    ]
    asked = Sampler(options, [[1]] * len(rows), ends=[])
    at = range(len(rows))
    assert asked.choose(logits, at, written=rows).tolist() == torch.stack(want).argmax(1).tolist()
    leads = logits.clone()
    leads[:, :6] += 9.0  # what was written before is what the model wants
    assert [int(t) for t in asked.choose(leads, at, written=rows)] == [
        int((theirs(torch.LongTensor([said]), leads[i : i + 1])[0] if said and i < 4 else leads[i]).argmax())
        for i, said in enumerate(rows)
    ]


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_no_run_of_tokens_is_written_twice(architecture: str, lm_folder: Folder, tmp_path: Path) -> None:
    base = load_lm(lm_folder(architecture))
    _mounted = add_experts(base, tmp_path, architecture, 3)
    prompts, gate = make_prompts(), RowGate(torch.tensor(CHOSEN))
    free = generate(base, prompts, gate, Generation(max_new_tokens=30))
    assert any(_repeats(each.ids, 2) for each in free)
    own = Generation(max_new_tokens=30, no_repeat_ngram=2, repetition_penalty=1.1)
    kinds = [own if i % 2 else Generation(max_new_tokens=30) for i in range(len(prompts))]
    mixed = generate(base, prompts, gate, kinds)
    for i, (chosen, found) in enumerate(zip(kinds, mixed, strict=True)):
        assert generate(base, [prompts[i]], RowGate(torch.tensor([CHOSEN[i]])), chosen) == [found]
        assert found == free[i] if chosen is not own else not _repeats(found.ids, 2)


def _repeats(ids: Sequence[int], size: int) -> bool:
    runs = [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]
    return len(runs) > len(set(runs))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"no_repeat_ngram": -1}, "no_repeat_ngram: got -1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: got 0.0"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ({"max_new_tokens": True}, "max_new_tokens: got True"),
        ({"min_new_tokens": 65}, "min_new_tokens: min_new_tokens 65 must not be above max_new_tokens 64"),
        ({"temperature": -1.0}, "temperature: got -1.0"),
        ({"temperature": float("inf")}, "temperature: got inf"),
        ({"top_k": -1}, "top_k: got -1"),
        ({"top_p": 0.0}, "top_p: got 0.0"),
        ({"stop": ("",)}, "stop.0: got ''"),
        ({"stop": "END"}, "stop: got 'END'"),
        ({"tempratur": 1.0}, r"tempratur: unknown key \(did you mean 'temperature'"),
        ({"stop": ["a"], "stop_strings": ["b"]}, "'stop' and 'stop_strings' are two names of one setting"),
    ],
)
def test_options_out_of_range_are_named(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        changed(Generation(), changes, what="generation")


def test_options_are_changed_by_their_own_names_and_by_those_of_the_field() -> None:
    options = changed(Generation(stop=("a",)), {"stop_strings": ["b"], "no_repeat_ngram_size": 3}, what="generation")
    assert options == Generation(stop=("b",), no_repeat_ngram=3)
    assert changed(options, {}, what="generation") == options


def test_what_cannot_be_written_is_refused_by_name(lm_folder: Folder) -> None:
    base = load_lm(lm_folder("gpt2"))
    assert generate(base, [], None) == []
    with pytest.raises(ConfigError, match="prompt 1 has 0 tokens"):
        generate(base, [[5], []], None)
    with pytest.raises(ConfigError, match=r"prompt 0 has 96 tokens.*reads 1 to 95"):
        generate(base, [[5] * 96], None)
    (full,) = generate(base, [[5] * 90], None)
    assert len(full.ids) == 6 and full.finish_reason == "length"
    with pytest.raises(ConfigError, match="1 prompts, but options for 2"):
        generate(base, [[5]], None, [Generation()] * 2)
    body = Base.load(BaseSpec(name="body", path=base.spec.path, kind="encoder"), device=torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"'encoder'.*cannot generate text"):
        generate(body, [[5]], None)
    with pytest.raises(ConfigError, match="no language-model head; use a decoder, or an"):
        body.logits(torch.zeros(1, 32))
    with pytest.raises(ConfigError, match=r"kind 'decoder'.*no decoder stack"):
        base.encode(Batch(torch.ones(1, 1).long(), None, torch.ones(1, 1).long()), None)
    with pytest.raises(ConfigError, match=r"kind: got 'decodr'; should be 'auto', 'encoder', 'decoder' or 'seq2seq'"):
        checked(BaseSpec, {"name": "body", "path": base.spec.path, "kind": "decodr"}, what="base 'body'")


@pytest.mark.skipif(not STORIES.is_dir(), reason=f"no {STORIES}; name the folder above models/ in DYNAMOROUTER_SHARED")
def test_a_real_decoder_tells_its_story_in_a_mixed_batch(tmp_path: Path) -> None:
    base = load_lm(STORIES)
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    oracle, _mounted = add_experts(base, tmp_path, "llama", 3)
    texts = ["", "The dog", "Lily and Tom went to the park. They", "One day, a"]
    prompts = [[base.tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)] for text in texts]
    experts = [-1, 0, 2, 1]
    got = generate(base, prompts, RowGate(torch.tensor(experts)), Generation(max_new_tokens=60))
    assert [list(row.ids) for row in got] == [
        alone(oracle, prompt, expert, tokens=60) for prompt, expert in zip(prompts, experts, strict=True)
    ]
    want = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    assert got[0].text.startswith(want)
    pieces: list[TextDelta] = []
    options = Generation(max_new_tokens=60, stop=(" in the park",))
    (row,) = generate(base, prompts[:1], None, options, on_piece=pieces.append)
    assert row.text == want.split(" in the park")[0] == "".join(piece.text for piece in pieces)
    assert AutoModelForCausalLM.from_pretrained(STORIES).num_parameters() == base.parameters()
