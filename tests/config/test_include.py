"""Tasks that include another: a variant is the keys it changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynamorouter.config.compose import compose
from dynamorouter.config.tasks import find_task
from dynamorouter.errors import ConfigError

VARIANT = "# @package task.short\ninclude: sst2\nmax_tokens: 64\n"


def conf(folder: Path, **texts: str) -> Path:
    """Write task files by name, and return the folder of the search path."""
    (folder / "task").mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / "task" / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def test_three_lines_are_a_variant(tmp_path: Path) -> None:
    folder = conf(tmp_path, short=VARIANT)
    task, original = find_task("short", search_path=[folder]), find_task("sst2")
    sources = {**original.sources, "local": {"folder": "sst2"}, "builtin": {"module": "sst2"}}
    assert task == original.model_copy(update={"name": "short", "max_tokens": 64, "sources": sources})
    config = compose("quickstart", [f"search_path=['{folder}']", "task=[short,sst2]"])
    assert config.task == {"short": task, "sst2": original}


def test_lists_replace_and_mappings_merge(tmp_path: Path) -> None:
    text = (
        "# @package task.own\ninclude: mbpp\nmetrics: [perplexity]\n"
        "generation: {max_new_tokens: 7, stop_strings: [END]}\n"
        "overrides: {r: 2}\nsources: {local: {folder: mine}}\n"
    )
    task, original = find_task("own", search_path=[conf(tmp_path, own=text)]), find_task("mbpp")
    changed = {"max_new_tokens": 7, "stop": ("END",)}
    assert task.generation == original.generation.model_copy(update=changed)
    assert task.metrics == ("perplexity",) and task.hyper == {**original.hyper, "rank": 2}
    assert task.sources["local"] == {"folder": "mine"} and task.sources["hub"] == original.sources["hub"]


def test_a_path_is_looked_up_beside_the_file_and_chains_are_followed(tmp_path: Path) -> None:
    folder = conf(
        tmp_path, short=VARIANT, shorter="include: short.yaml\nstride: 4\n", last="include: shorter\nversion: 2\n"
    )
    task = find_task(str(folder / "task" / "shorter.yaml"))
    assert (task.name, task.max_tokens, task.stride) == ("shorter", 64, 4)
    last = find_task("last", search_path=[folder])
    assert last == task.model_copy(update={"name": "last", "version": 2})
    assert last.sources["builtin"] == {"module": "sst2"}


def test_overrides_recipes_and_files_change_a_variant_too(tmp_path: Path) -> None:
    folder = conf(tmp_path, short=VARIANT)
    tree = {"search_path": [str(folder)], "tasks": ["short"], "task": {"short": {"stride": 7}}}
    (tmp_path / "config.json").write_text(json.dumps(tree), encoding="utf-8")
    config = compose("quickstart", ["task.short.version=3"], config_file=tmp_path / "config.json")
    assert (config.task["short"].stride, config.task["short"].version, config.task["short"].max_tokens) == (7, 3, 64)
    (tmp_path / "mine.json").write_text(
        json.dumps({"task": {"mine": {"include": "task/short.yaml"}}}), encoding="utf-8"
    )
    assert compose("quickstart", config_file=tmp_path / "mine.json").task["mine"].max_tokens == 64


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ({"own": "include: sst\n"}, r"task\.own\.include \(own -> sst\): unknown task 'sst' \(did you mean 'sst2'"),
        ({"own": "include: nowhere.yaml\n"}, r"task\.own\.include \(own -> nowhere\.yaml\): .*does not exist"),
        ({"own": "include: [sst2]\n"}, r"task\.own\.include: got \['sst2'\]; name one task"),
        ({"own": "include: own\n"}, r"task\.own\.include \(own -> own\): tasks include each other"),
        (
            {"own": "include: two\n", "two": "include: own\n"},
            r"\(own -> two -> own\): tasks include each other",
        ),
        ({"own": "include: two\n", "two": "include: sst\n"}, r"\(own -> two -> sst\): unknown task 'sst'"),
        ({"own": "include: sst2\nlabls: [a]\n"}, r"task\.own\.labls: unknown key \(did you mean 'task\.own\.labels'"),
        ({"own": "include: sst2\nlabels: [a]\n"}, r"task\.own: .*at least two different labels"),
    ],
)
def test_what_is_wrong_names_the_chain(tmp_path: Path, texts: dict[str, str], reason: str) -> None:
    folder = conf(tmp_path, **{name: f"# @package task.{name}\n{text}" for name, text in texts.items()})
    with pytest.raises(ConfigError, match=reason):
        find_task("own", search_path=[folder])
    with pytest.raises(ConfigError, match=reason):
        compose("quickstart", [f"search_path=['{folder}']", "task=[own]"])
