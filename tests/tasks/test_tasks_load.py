"""Tasks from plain values: the packaged ones are whole, and mistakes are named all at once."""

from __future__ import annotations

from typing import Any

import pytest

from dynamorouter.config.checks import check_names
from dynamorouter.config.files import CONF
from dynamorouter.config.tasks import find_task
from dynamorouter.errors import ConfigError
from dynamorouter.tasks.task import Columns, Task
from dynamorouter.utils.explain import checked

FILES = sorted((CONF / "task").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_packaged_tasks_are_whole(file: Any) -> None:
    task = find_task(file.stem)
    assert file.read_text(encoding="utf-8").startswith(f"# @package task.{file.stem}\n")
    assert task.name == file.stem
    assert {"hub", "local"} <= set(task.sources)


def test_a_task_needs_three_keys_and_has_defaults_for_the_rest() -> None:
    config = {"name": "t", "head": "span", "columns": {"text": "q", "pair": "c", "target": "a"}}
    task = checked(Task, config, what="task 't'")
    assert task == Task(name="t", head="span", columns=Columns(text="q", target="a", pair="c"))
    assert (task.max_tokens, task.stride, task.generation.max_new_tokens) == (128, 32, 64)


def test_a_task_is_written_as_values_that_read_back() -> None:
    task = find_task("mbpp")
    assert checked(Task, task.model_dump(mode="json"), what="a card") == task


GOOD: dict[str, Any] = {
    "name": "t",
    "head": "classification",
    "columns": {"text": "x", "target": "y"},
    "labels": ["a", "b"],
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": "../x"}, "name: got '../x'; it is also a folder's name"),
        ({"name": None}, "name: got None; should be a valid string"),
        (
            {"head": "clasification"},
            "head: got 'clasification'; there is no such head (did you mean 'classif",
        ),
        ({"colums": {}}, "colums: unknown key (did you mean 'columns'?)"),
        ({"columns": {"text": "x"}}, "columns.target: missing"),
        (
            {"columns": {"text": "x", "target": "y", "pear": "z"}},
            "columns.pear: unknown key (did you mean 'columns.pair'",
        ),
        ({"columns": {"text": 3, "target": "y"}}, "columns.text: got 3; should be a valid string (quote numbers"),
        ({"columns": {"text": "", "target": "y"}}, "columns.text: got ''; "),
        ({"columns": None}, "columns: got None"),
        ({"columns": {"text": "a", "target": "b", "extra": {"tests": "c"}}}, "columns.extra is {'tests': 'c'}"),
        ({"labels": ["a"]}, "a classification head needs at least two different labels"),
        ({"labels": ["a", "a", "b"]}, "labels: a is listed twice"),
        ({"labels": [False, True]}, "labels.0: got False; should be a valid string (quote numbers and words like 'no'"),
        ({"labels": "ab"}, "labels: got 'ab'"),
        ({"positive": "c"}, "positive: got 'c'; allowed: a, b"),
        ({"metrics": []}, "metrics: got []"),
        ({"head": "span"}, "columns.pair is missing"),
        ({"head": "span"}, "a span head has none"),
        ({"head": "tags"}, "labels lack 'O'"),
        ({"head": "tags", "labels": ["O", "X"]}, "labels X are not BIO tags"),
        ({"head": "tags", "labels": ["O", "I-X"]}, "I-X have no B- tag"),
        ({"head": "tags", "columns": {"text": "x", "target": "y", "pair": "z"}}, "columns.pair is 'z'"),
        ({"sources": {"hub": "squad"}}, "sources.hub: got 'squad'"),
        ({"sources": ["hub"]}, "sources: got ['hub']"),
        ({"hyper": 3}, "hyper: got 3"),
        ({"base": 3}, "base: got 3"),
        ({"version": 0}, "version: got 0"),
        ({"version": True}, "version: got True; should be a number"),
        ({"max_tokens": "many"}, "max_tokens: got 'many'"),
        ({"max_tokens": 32, "stride": 32}, "stride: stride 32 must be below max_tokens 32"),
        ({"max_tokens": 32}, "stride: stride 32 must be below max_tokens 32"),
    ],
)
def test_each_mistake_is_named(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(Task, {**GOOD, **change}, what="task 't'")
    assert reason in str(caught.value)


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match="task 't' has 4 mistakes") as caught:
        checked(Task, {**GOOD, "name": "a b", "version": True, "extra": 1, "labels": ["a", "a"]}, what="task 't'")
    assert all(f"- {key}: " in str(caught.value) for key in ("name", "version", "extra", "labels"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"metrics": ["accurac"]},
            "task.t.metrics: unknown metric 'accurac' (did you mean 'accuracy'?); allowed: accuracy, f1",
        ),
        (
            {"metrics": ["squad_f1"]},
            "task.t.metrics: metric 'squad_f1' does not judge a classification head; allowed: accuracy",
        ),
        ({"sources": {"hubb": {}}}, "task.t.sources: unknown source 'hubb' (did you mean 'hub'?)"),
    ],
)
def test_names_that_do_not_exist_are_named(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_names([checked(Task, {**GOOD, **change}, what="task 't'")])
    assert reason in str(caught.value)
