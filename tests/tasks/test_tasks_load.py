"""Tasks from plain values: the packaged ones are whole, and mistakes are named all at once."""

from __future__ import annotations

from importlib import resources
from typing import Any

import pytest
import yaml

from dynamorouter.errors import ConfigError
from dynamorouter.tasks.load import task_from_config
from dynamorouter.tasks.task import Columns, Task

FILES = sorted(
    (
        item
        for item in resources.files("dynamorouter").joinpath("conf", "task").iterdir()
        if item.name.endswith(".yaml")
    ),
    key=lambda item: item.name,
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_packaged_tasks_are_whole(file: Any) -> None:
    text = file.read_text(encoding="utf-8")
    name = file.name.removesuffix(".yaml")
    task = task_from_config(yaml.safe_load(text))
    assert text.startswith(f"# @package task.{name}\n")
    assert task.name == name
    assert {"hub", "local"} <= set(task.sources)
    assert isinstance(hash(task.labels), int)


def test_a_task_needs_three_keys_and_has_defaults_for_the_rest() -> None:
    config = {
        "name": "t",
        "head": "span",
        "columns": {"text": "q", "pair": "c", "target": "a"},
        "metrics": ["squad_em"],
    }
    columns = Columns("q", "a", pair="c")
    assert task_from_config(config) == Task("t", "span", columns, metrics=("squad_em",))


GOOD: dict[str, Any] = {
    "name": "t",
    "head": "classification",
    "columns": {"text": "x", "target": "y"},
    "labels": ["a", "b"],
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "../x"}, "name is '../x'"),
        ({"name": None}, "name is None"),
        ({"head": "clasification"}, "did you mean 'classification'"),
        ({"colums": {}}, "unknown key 'colums' (did you mean 'columns'?)"),
        ({"columns": {"text": "x"}}, "columns.target is missing"),
        ({"columns": {"text": "x", "target": "y", "pear": "z"}}, "columns.pear (did you mean 'pair'?)"),
        ({"columns": {"text": 3, "target": "y"}}, "columns.text is 3"),
        ({"columns": None}, "columns is None"),
        ({"labels": ["a"]}, "needs at least two different labels"),
        ({"labels": ["a", "a", "b"]}, "labels repeat a"),
        ({"labels": [False, True]}, "quote words like 'no'"),
        ({"labels": "ab"}, "labels is 'ab'"),
        ({"positive": "c"}, "positive is 'c'"),
        ({"metrics": []}, "at least one name"),
        ({"metrics": ["acc"]}, "unknown metric 'acc'"),
        ({"metrics": ["squad_f1"]}, "does not judge a classification head; allowed: accuracy, f1"),
        ({"head": "span", "metrics": ["squad_em"]}, "columns.pair is missing"),
        ({"head": "span", "metrics": ["squad_em"]}, "a span head has none"),
        ({"head": "tags", "metrics": ["entity_f1"]}, "labels lack 'O'"),
        ({"head": "tags", "metrics": ["entity_f1"], "labels": ["O", "X"]}, "labels X are not BIO tags"),
        ({"head": "tags", "metrics": ["entity_f1"], "labels": ["O", "I-X"]}, "I-X have no B- tag"),
        ({"sources": {"hubb": {}}}, "unknown source 'hubb' (did you mean 'hub'?)"),
        ({"sources": {"hub": "squad"}}, "sources.hub is 'squad'"),
        ({"sources": ["hub"]}, "sources is ['hub']"),
        ({"hyper": 3}, "hyper is 3"),
        ({"base": 3}, "base is 3"),
        ({"version": 0}, "version is 0"),
        ({"max_tokens": "many"}, "max_tokens is 'many'"),
        ({"max_tokens": 32, "stride": 32}, "stride is 32; it must be below max_tokens, 32"),
    ],
)
def test_each_mistake_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        task_from_config({**GOOD, **change})
    assert said in str(caught.value)


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match="has 3 mistake") as caught:
        task_from_config({**GOOD, "name": "a b", "version": True, "extra": 1})
    assert all(word in str(caught.value) for word in ("name", "version", "extra"))
