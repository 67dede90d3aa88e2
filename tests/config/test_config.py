"""Composition of settings: what is chosen, what wins, and that every mistake is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynamorouter.config.compose import compose, load
from dynamorouter.config.files import CONF, list_names
from dynamorouter.config.schema import Config
from dynamorouter.config.tasks import find_task
from dynamorouter.errors import ConfigError

SIX = ["sst2", "ag_news", "mnli", "qqp", "squad", "conll2003"]
OWN_TASK = {"head": "classification", "columns": {"text": "t", "target": "l"}, "labels": ["x", "y"]}


def mistakes(*overrides: str, recipe: str | None = "quickstart", config_file: Path | None = None) -> list[str]:
    """Return the lines of the error that composing raises."""
    with pytest.raises(ConfigError) as caught:
        compose(recipe, overrides, config_file=config_file)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    return lines[1:] if len(lines) > 1 else lines


def write(folder: Path, tree: object, name: str = "config.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


@pytest.mark.parametrize("recipe", sorted(list_names("recipes")))
def test_every_recipe_composes_and_names_itself(recipe: str) -> None:
    config = compose(recipe)
    assert config.recipe == recipe
    assert all(task.name == name for name, task in config.task.items())


@pytest.mark.parametrize(("group", "kind"), [("base", "bases"), ("router", "routers"), ("task", "tasks")])
def test_every_choice_composes_and_has_a_description(group: str, kind: str) -> None:
    for name, line in list_names(kind).items():
        assert line, f"conf/{group}/{name}.yaml has no comment that says what it is"
        if group != "task":
            assert isinstance(compose("quickstart", [f"{group}={name}", "task=[ag_news]"]), Config)
    if group == "task":
        every = list(list_names(kind))
        assert list(compose("quickstart", [f"task=[{','.join(every)}]"]).task) == every


def test_quickstart_is_six_tasks_on_builtin_data() -> None:
    config = compose("quickstart")
    assert list(config.task) == SIX
    assert (config.data.source, config.base.name, config.joint.enabled) == ("builtin", "minilm", False)


def test_the_contract_command_applies_train_rows_to_all_tasks() -> None:
    words = ["data=local", "data.root=../shared/data", "experts.train_rows=2000", "router.train_rows=1000"]
    config = compose("seven", words)
    assert (config.data.source, config.data.root) == ("local", "../shared/data")
    assert [config.expert(task).train_rows for task in SIX] == [2000] * 6


def test_the_recipe_seven_has_sizes_of_its_own_per_task() -> None:
    config = compose("seven")
    assert config.expert("sst2").train_rows == 5000
    assert config.expert("squad").train_rows == 50000
    assert config.expert("conll2003").train_rows is None
    assert compose("seven", ["experts.train_rows.squad=7"]).expert("squad").train_rows == 7


def test_seven_and_three_write_their_summaries_on_a_decoder_of_their_own() -> None:
    for recipe, depth in (("seven", 3), ("three", 6)):
        config = compose(recipe)
        assert (config.task["xsum"].head, config.task["xsum"].base) == ("causal_lm", "mini")
        assert config.bases["mini"].prompt == "plain"
        assert (config.expert("xsum").trunk_depth, config.expert("sst2").trunk_depth) == (0, depth)
        assert list(compose(recipe, ["task=[sst2,squad]"]).task) == ["sst2", "squad"]
        other = compose(recipe, ["task.xsum.base=pegasus_xsum", "task.xsum.head=seq2seq"])
        assert other.bases["pegasus_xsum"].kind == "seq2seq"


def test_overrides_choose_and_change() -> None:
    words = ["task=[squad,sst2]", "task.sst2.max_tokens=48", "router=knn", "experts.trunk_cache={where: disk}"]
    config = compose("quickstart", [*words, "task.sst2.hyper={rank: 4}", "~task.sst2.sources"])
    assert list(config.task) == ["squad", "sst2"]
    assert config.task["sst2"].max_tokens == 48
    assert config.router.kind == "knn"
    assert (config.experts.trunk_cache.where, config.experts.trunk_cache.limit_mb) == ("disk", 2048)
    assert (config.expert("sst2").rank, config.expert("squad").rank) == (4, config.experts.rank)
    assert config.task["sst2"].sources == {}


def test_a_task_on_another_base_brings_that_base() -> None:
    config = compose("quickstart", ["task.squad.base=bert"])
    assert config.bases["bert"].path == "bert-base-uncased"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("experts.rnak=3", "experts.rnak: unknown key (did you mean 'experts.rank'?)"),
        ("train_rows=3", "train_rows: unknown key (did you mean 'experts.train_rows'"),
        ("experts.trunk_cache.limt_mb=3", "did you mean 'experts.trunk_cache.limit_mb'"),
        ("joint.epochs=0", "joint.epochs: got 0; should be greater than or equal to 1"),
        ("router.train_rows=many", "router.train_rows: got 'many'; should be a valid integer"),
        ("device=gpu", "device: got 'gpu'; should be 'auto', 'cpu' or 'cuda'"),
        ("experts.learning_rate=nan", "experts.learning_rate: got nan"),
        ("seed=1.5", "seed: got 1.5"),
        ("base=minlm", "base: unknown choice 'minlm' (did you mean 'minilm'?); allowed: bert"),
        ("task=[sst,squad]", "task: unknown choice 'sst' (did you mean 'sst2'?)"),
        ("task=[]", "task: the list is empty"),
        ("task=[sst2,sst2]", "names one twice"),
        ("recipe=seven", "recipe: named twice"),
        ("data=local", "data.root is not set; add data.root=FOLDER"),
        ("data.source=local", "data.root is not set; add data.root=FOLDER"),
        ("task.sst.max_tokens=9", "task 'sst' is not chosen (did you mean 'sst2'?)"),
        ("task.sst2.stride=4000", "stride 4000 must be below max_tokens"),
        ("task.sst2.base=nope", "task.sst2.base: no such base 'nope'"),
        ("task.sst2.labels=[a]", "needs at least two different labels"),
        ("task.squad.head=spam", "task.squad.head: got 'spam'; there is no such head (did you mean 'span'?); allowed"),
        ("experts.train_rows.sqad=3", "experts.train_rows.sqad: no such task (did you mean 'squad'?)"),
        ("experts.fusion.sqad={}", "experts.fusion.sqad: no such task (did you mean 'squad'?)"),
        ("search_path=[nowhere]", "search_path: 'nowhere' is not a folder"),
        ("~task.foo", "~task.foo: there is no such entry"),
        ("foo", "override 'foo' cannot be read"),
        ("seed=1,2", "names several values"),
        ("tracking=3", "tracking: got 3"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(override: str, expected: str) -> None:
    found = mistakes("experts.train_rows={default: 9}", override)
    assert len(found) == 1
    assert expected in found[0]


def test_all_mistakes_are_named_at_once() -> None:
    words = ["base=minlm", "task=[squad,mnil]", "experts.rnak=3", "joint.epochs=0", "foo", "device=gpu", "a.b=1"]
    found = mistakes(*words, recipe="sevn")
    for key in ("base:", "task:", "recipe:", "experts.rnak:", "joint.epochs:", "'foo'", "device:", "a:"):
        assert any(key in line for line in found), key
    assert len(found) == 8


def test_a_missing_recipe_is_asked_for() -> None:
    assert mistakes(recipe=None) == [f"recipe: none is named; allowed: {', '.join(sorted(list_names('recipes')))}"]


@pytest.mark.parametrize("name", ["config.json", "config.yaml"])
def test_saved_settings_read_back_unchanged(tmp_path: Path, name: str) -> None:
    words = ["task=[squad,sst2]", "task.squad.base=bert", "experts.train_rows={default: 5}", "joint.enabled=false"]
    config = compose("seven", [*words, "seed=3"])
    path = tmp_path / name
    path.write_text(json.dumps(config.to_json()) if name.endswith("json") else config.to_yaml(), encoding="utf-8")
    for again in (load(path), compose(config_file=path)):
        assert again == config
        assert list(again.task) == ["squad", "sst2"]
        assert again.digest() == config.digest()


def test_the_digest_changes_with_any_setting() -> None:
    digests = {compose("quickstart", words).digest() for words in ([], ["seed=1"], ["task.sst2.max_tokens=33"])}
    assert len(digests) == 3
    assert all(len(digest) == 16 for digest in digests)


def test_a_later_setting_leaves_old_digests_as_they_were() -> None:
    old = load(Path(__file__).parents[1] / "fixtures" / "before_house" / "run" / "config.yaml")
    assert old.digest() == "15360d7094223db8"  # as commit 557703c computes it
    name = next(iter(old.task))
    assert old.to_json()["task"][name]["generation"]["seed"] == 0
    tree = old.to_json()
    tree["task"][name]["generation"]["seed"] = 1
    assert Config.model_validate(tree).digest() != old.digest()


def test_a_file_names_groups_amends_tasks_and_loses_to_overrides(tmp_path: Path) -> None:
    tree = {
        "recipe": "three",
        "base": "minilm",
        "data": {"source": "local", "root": "rows"},
        "tasks": ["sst2", "own"],
        "task": {"sst2": {"max_tokens": 40}, "own": OWN_TASK},
        "seed": 1,
        "experts": {"epochs": 7},
    }
    config = compose(None, ["seed=2"], config_file=write(tmp_path, tree))
    assert (config.recipe, config.base.name, config.data.root, config.seed) == ("three", "minilm", "rows", 2)
    assert list(config.task) == ["sst2", "own"]
    assert config.task["sst2"].max_tokens == 40
    assert config.task["own"].labels == ("x", "y")
    assert (config.experts.epochs, config.experts.rank) == (7, 8)


def test_a_partial_task_in_a_file_leaves_the_other_tasks(tmp_path: Path) -> None:
    path = write(tmp_path, {"recipe": "quickstart", "task": {"sst2": {"max_tokens": 40}}})
    config = compose(config_file=path)
    assert list(config.task) == SIX
    assert config.task["sst2"].max_tokens == 40


def test_mistakes_of_a_file_are_named_like_those_of_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, {"recipe": "sevn", "base": "minlm", "experts": {"rnak": 1}, "tasks": 3})
    found = mistakes("joint.epochs=0", recipe=None, config_file=path)
    assert len(found) == 5


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.json", "{", "is not valid JSON"),
        ("a.yaml", "a: [", "is not valid YAML"),
        ("a.yaml", "- 1", "must hold one mapping"),
        ("a.json", "[1]", "must hold one mapping"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, text: str, expected: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=expected):
        compose("quickstart", config_file=tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "does not exist" in mistakes(config_file=tmp_path / "none.json")[0]


def test_bytes_that_are_not_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\xfa")
    assert "cannot be read" in mistakes(config_file=tmp_path / "a.yaml")[0]


def test_own_tasks_and_recipes_are_found_on_the_search_path(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "recipe").mkdir()
    own = "# @package task.own\n# My own.\nhead: classification\ncolumns: {text: t, target: l}\nlabels: [x, y]\n"
    (tmp_path / "task" / "own.yaml").write_text(own, encoding="utf-8")
    recipe = "# @package _global_\n# Mine.\ndefaults:\n  - override /task: [own, sst2]\nrecipe: mine\n"
    (tmp_path / "recipe" / "mine.yaml").write_text(recipe, encoding="utf-8")
    config = compose("mine", [f"search_path=['{tmp_path}']"])
    assert list(config.task) == ["own", "sst2"]
    assert list_names("tasks", [CONF, tmp_path])["own"] == "My own."
    assert find_task("own", search_path=[tmp_path]) == config.task["own"]


def test_an_own_task_without_its_package_line_is_explained(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "own.yaml").write_text("# My own.\nhead: classification\n", encoding="utf-8")
    found = mistakes("task=[own,sst2]", f"search_path=['{tmp_path}']")
    assert any("# @package task." in line for line in found)


def test_one_task_by_name_or_file(tmp_path: Path) -> None:
    assert find_task("sst2") == compose("quickstart").task["sst2"]
    (tmp_path / "own.yaml").write_text(json.dumps(OWN_TASK), encoding="utf-8")
    assert find_task(str(tmp_path / "own.yaml")).name == "own"
    with pytest.raises(ConfigError, match=r"unknown task 'sst' \(did you mean 'sst2'\?\)"):
        find_task("sst")
    (tmp_path / "bad.yaml").write_text(json.dumps({**OWN_TASK, "labls": []}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"task\.bad\.labls: unknown key \(did you mean 'task\.bad\.labels'\?\)"):
        find_task(str(tmp_path / "bad.yaml"))


def test_listing_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'tasks'"):
        list_names("task")


def test_composing_leaves_another_hydra_application_alone() -> None:
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        compose("quickstart")
        assert GlobalHydra.instance().is_initialized()
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize("name", ["5", "nan", "true", "null"])
def test_a_task_may_be_called_like_a_number(tmp_path: Path, name: str) -> None:
    path = tmp_path / "task" / f"{name}.yaml"
    path.parent.mkdir()
    path.write_text(
        f"# @package task.{name}\nname: '{name}'\nhead: classification\ncolumns: {{text: text, target: label}}\n"
        "labels: [a, b]\nmetrics: [accuracy]\nsources: {local: {}}\n"
    )
    words = [f"search_path=[{tmp_path}]", f"task=['{name}',sst2]", "data=local", f"data.root={tmp_path}"]
    config = compose("quickstart", words)
    assert list(config.task) == [name, "sst2"]
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load(tmp_path / "config.yaml") == config
