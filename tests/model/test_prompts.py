"""Prompt formats: what a row becomes, what is cut of it, and what of its record a prompt may hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynamorouter.data.augment import augmented
from dynamorouter.data.config import AugmentConfig
from dynamorouter.data.convert import convert
from dynamorouter.errors import ConfigError
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.config import BaseSpec
from dynamorouter.model.text.prompts import encode_prompts, prompt_windows, prompts
from dynamorouter.tasks.kinds import RowProblem, head_kind
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Generation, Task
from dynamorouter.utils.explain import checked
from support.tinylm import load_lm

Folder = Callable[[str], Path]
CODE: dict[str, Any] = {
    "name": "code",
    "head": "causal_lm",
    "columns": {"text": "ask", "pair": "input", "target": "answer", "extra": {"tests": "checks"}},
    "metrics": ["lm_loss"],
    "generation": {"max_new_tokens": 9, "stop": ["END"]},
}


@pytest.fixture(scope="module")
def base(lm_folder: Callable[[str], Path]) -> Base:
    return load_lm(lm_folder("gpt2"))


def test_every_form_holds_text_and_pair_and_no_name_of_a_task(base: Base) -> None:
    base.tokenizer.chat_template = "{% for m in messages %}<s>{{ m.content }}{% endfor %}|"
    for name in prompts:
        alone, both = (prompts.get(name)("Say it", pair, base.tokenizer) for pair in (None, "with this"))
        assert "Say it" in alone and "with this" not in alone
        assert both.index("Say it") < both.index("with this")
        assert "task" not in alone.replace("describes a task", "").lower()
    assert prompts.get("plain")("a", "b", None) == "a\n\nb\n\n"
    assert prompts.get("alpaca")("a", None, None).endswith("### Instruction:\na\n\n### Response:\n")
    assert prompts.get("alpaca")("a", "b", None).endswith("### Input:\nb\n\n### Response:\n")
    base.tokenizer.chat_template = None
    with pytest.raises(ConfigError, match=r"needs a chat template.*choose alpaca, plain"):
        prompts.get("chat")("a", None, base.tokenizer)
    with pytest.raises(ConfigError, match="unknown prompt 'alpca' \\(did you mean 'alpaca'"):
        prompts.get("alpca")


@pytest.mark.parametrize("form", ["plain", "alpaca", "query_answer", "sharegpt"])
@pytest.mark.parametrize("pair", [None, "p" * 300])
def test_the_end_of_a_rows_own_text_is_cut_and_the_forms_words_stay(base: Base, form: str, pair: str | None) -> None:
    write = prompts.get(form)
    words = len(write("", None if pair is None else "", base.tokenizer))
    (short,) = encode_prompts(base, [("t" * 5, None if pair is None else "p" * 5)], form=form, room=words + 10)
    assert short.cut == 0
    room = words + 30
    (cut,) = encode_prompts(base, [("t" * 20 if pair else "t" * 200, pair)], form=form, room=room)
    said = base.tokenizer.decode(cut.ids)
    assert len(cut.ids) == room and cut.cut == (290 if pair else 170)
    assert said == write("t" * 20 if pair else "t" * 30, None if pair is None else "p" * 10, base.tokenizer)
    with pytest.raises(ConfigError, match=f"prompt '{form}' takes .* but 1 are allowed"):
        encode_prompts(base, [("tt", pair)], form=form, room=1)


def test_a_router_on_a_decoder_reads_the_prompt_and_on_an_encoder_the_pair(
    base: Base, tiny_base: Callable[..., Base]
) -> None:
    rows = [("a cat", None), ("who", "a dog")]
    windows = prompt_windows(base, rows, max_tokens=50, stride=4)
    want = encode_prompts(base, rows, form="plain", room=50)
    assert [w.encoding.ids for w in windows] == [prompt.ids for prompt in want]
    encoder = tiny_base("bert")
    own = encoder.encoder.windows(rows, max_tokens=50, stride=4)
    assert [w.encoding.ids for w in prompt_windows(encoder, rows, max_tokens=50, stride=4)] == [
        w.encoding.ids for w in own
    ]


def test_nothing_that_ends_a_text_is_left_at_a_prompts_end(tiny_folder: Folder) -> None:
    spec = BaseSpec(name="tiny", path=str(tiny_folder("llama")), kind="auto")
    import torch

    reader = Base.load(spec, device=torch.device("cpu"))  # its tokenizer writes [CLS] ... [SEP]
    (prompt,) = encode_prompts(reader, [("the film", None)], form="plain", room=20)
    names = reader.tokenizer.convert_ids_to_tokens(prompt.ids)
    assert names == ["[CLS]", "the", "film"]


def test_records_of_texts_carry_what_a_metric_reads_in_their_target() -> None:
    task = Task.model_validate(CODE)
    assert task.generation == Generation(max_new_tokens=9, stop=("END",))
    row = {"ask": "Add", "input": " ", "answer": "a + b", "checks": ["assert 1"]}
    found = convert(task, 0, row, "0", fixed=Counter())
    assert isinstance(found, Record) and found.pair is None
    assert found.target == {"texts": ["a + b"], "tests": ["assert 1"]}
    assert "assert" not in found.text and Record.from_json(found.to_json()) == found
    kind = head_kind(task.head)
    assert kind.stratum(found.target) == ""
    assert list(augmented([found], AugmentConfig(copies=2), kind=kind, seed=0)) == []
    several = convert(task, 0, {**row, "answer": ["x", "y"]}, "0", fixed=Counter())
    assert isinstance(several, Record) and several.target == {"texts": ["x", "y"], "tests": ["assert 1"]}
    for wrong, code in (("", "no_answer"), (None, "no_answer"), (3, "not_text"), ("a\x00", "control_characters")):
        problem = convert(task, 0, {**row, "answer": wrong}, "0", fixed=Counter())
        assert isinstance(problem, RowProblem) and problem.code == code


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": ["a", "b"]}, "a causal_lm head has none"),
        ({"generation": {"max_tokens": 3}}, "generation.max_tokens: unknown key"),
        ({"generation": {"top_p": 2}}, "generation.top_p: got 2"),
        ({"prompt": 3}, "prompt: got 3"),
        ({"columns": {"text": "a", "target": "b", "extra": {"texts": "c"}}}, "columns.extra names 'texts'"),
        ({"head": "span", "metrics": ["squad_f1"]}, "columns.extra is"),
    ],
)
def test_mistakes_in_a_task_that_writes_are_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        checked(Task, {**CODE, **change}, what="task 'code'")
