"""Bases are looked at before any work, and a base that is spoken to in a form of its own keeps it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dynamorouter.config.compose import compose
from dynamorouter.config.tasks import find_task
from dynamorouter.errors import ConfigError
from dynamorouter.model.base.config import BaseSpec
from dynamorouter.model.text.prompts import prompt_form
from dynamorouter.runs.bases import check_bases
from support.tinyrun import call, refused, words


@pytest.fixture
def conf(lm_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return a folder of settings with a decoder that is spoken to by chat, and one that is spoken to plainly."""
    (tmp_path / "base").mkdir()
    for name, form in (("talker", "chat"), ("writer", "plain")):
        text = f"name: {name}\npath: {lm_folder('gpt2')}\nkind: decoder\nprompt: {form}\n"
        (tmp_path / "base" / f"{name}.yaml").write_text(text)
    return tmp_path


def test_a_chat_base_keeps_its_template_whatever_the_task_and_the_recipe_say(conf: Path) -> None:
    here = f"search_path=[{conf}]"
    chatting = compose("complexity", [here, "base=talker"])
    assert chatting.base.prompt == "chat"
    assert {prompt_form(task, chatting.base) for task in chatting.task.values()} == {"chat"}
    for base in ("writer", "mini"):
        plain = compose("complexity", [here, f"base={base}"])
        assert plain.base.prompt == "alpaca"  # as the recipe says
        assert {prompt_form(task, plain.base) for task in plain.task.values()} == {"alpaca"}
    said = compose("complexity", [here, "base=talker", "base.prompt=plain", "task.simple.prompt=sharegpt"])
    assert [prompt_form(task, said.base) for task in said.task.values()] == ["sharegpt", "alpaca", "alpaca"]
    task = find_task("gsm8k")
    forms = {form: prompt_form(task, BaseSpec(name="b", path="p", prompt=form)) for form in ("plain", "chat", "alpaca")}
    assert forms == {"plain": "query_answer", "chat": "chat", "alpaca": "alpaca"}
    named = task.model_copy(update={"prompt": "sharegpt"})
    assert prompt_form(named, BaseSpec(name="b", path="p", prompt="chat")) == "sharegpt"


def test_all_that_is_wrong_with_bases_is_named_before_any_work(conf: Path, home: Path, tmp_path: Path) -> None:
    text = f"search_path=[{conf},{home / 'conf'}]"
    config = compose("complexity", [text, "base=talker", "task.simple.head=seq2seq", "task.medium.base=tiny"])
    with pytest.raises(ConfigError) as error:
        check_bases(config)
    said = str(error.value)
    assert "task 'simple': a seq2seq head needs a base of kind seq2seq, but base 'talker' is of kind decoder" in said
    assert "task 'medium': a causal_lm head needs a base of kind decoder, but base 'tiny' is of kind encoder" in said
    assert "prompt 'chat' of task 'complex', task 'simple' needs a chat template" in said
    folder = tmp_path / "with_template"
    folder.mkdir()
    for path in Path(config.base.path).iterdir():
        (folder / path.name).symlink_to(path)
    template = folder / "chat_template.jinja"
    template.write_text("{{ messages[0].content }}")
    check_bases(compose("complexity", [f"search_path=[{conf}]", "base=talker", f"base.path={folder}"]))
    template.unlink()
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    check_bases(compose("complexity", [f"search_path=[{conf}]", "base=talker", f"base.path={folder}"]))
    for wrong, reason in (("/no/such/folder", "there is no folder"), (str(tmp_path), "holds no model (no config.json")):
        out = tmp_path / "out"
        refused(call("run", *words(home), f"base.path={wrong}", "--out", out), "base 'tiny': ", reason)
        assert not out.exists()
