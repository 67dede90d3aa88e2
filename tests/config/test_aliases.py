"""Settings by the names of PEFT, of the Trainer and of the field: understood everywhere, written nowhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dynamorouter.config.compose import compose, load
from dynamorouter.config.schema import ROOT
from dynamorouter.config.tasks import find_task
from dynamorouter.errors import ConfigError
from dynamorouter.utils.explain import Branch
from dynamorouter.utils.options import Alias, Options

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
OWN = {"router": {"epochs": 3, "batch_rows": 64}, "evaluation": {"select_rows": 9}}
ALIASED = {"router": {"num_train_epochs": 3, "batch_size": 64}, "evaluation": {"max_eval_samples": 9}}


def models(branch: Branch = ROOT, prefix: str = "") -> Iterator[tuple[str, type[Options]]]:
    """Yield the classes of the settings, each with the dotted path that its settings stand under."""
    if branch.named:
        below = branch.below("NAME")
        assert below is not None
        yield from models(below, f"{prefix}NAME.")
        return
    yield prefix, branch.model
    for name in branch.model.model_fields:
        below = branch.below(name)
        if below is not None:
            yield from models(below, f"{prefix}{name}.")


def aliases() -> Iterator[tuple[str, str]]:
    """Yield the dotted path of every setting that has another name, and each of these names."""
    for prefix, model in models():
        yield from ((f"{prefix}{own}", other) for other, own in model.aliases().items())


def test_overrides_and_files_understand_both_names(tmp_path: Path) -> None:
    expected = compose("quickstart", config_file=written(tmp_path / "own.json", OWN))
    assert (expected.router.epochs, expected.router.batch_rows, expected.evaluation.select_rows) == (3, 64, 9)
    for path in (tmp_path / "other.json", tmp_path / "other.yaml"):
        assert compose("quickstart", config_file=written(path, ALIASED)) == expected
    words = [f"{branch}.{key}={value}" for branch, keys in ALIASED.items() for key, value in keys.items()]
    assert compose("quickstart", words) == expected
    assert compose("quickstart", ["router={num_train_epochs: 3, batch_size: 64}", "evaluation.max_eval_samples=9"]) == (
        expected
    )


def test_an_override_by_another_name_wins_over_a_file(tmp_path: Path) -> None:
    path = written(tmp_path / "own.json", OWN)
    assert compose("quickstart", ["router.num_train_epochs=4"], config_file=path).router.epochs == 4
    path = written(tmp_path / "other.json", ALIASED)
    assert compose("quickstart", ["router.epochs=4"], config_file=path).router.epochs == 4


def test_a_task_is_changed_by_other_names_too(tmp_path: Path) -> None:
    words = ["task.sst2.overrides.num_train_epochs=2", "task.sst2.generation.stop_strings=[END]"]
    task = compose("quickstart", words).task["sst2"]
    assert (task.hyper, task.generation.stop) == ({"epochs": 2}, ("END",))
    words = ["experts.r=4", "experts.max_train_samples.squad=7", "task.sst2.overrides={r: 2, target_modules: [query]}"]
    config = compose("quickstart", ["experts.train_rows={default: 9}", *words])
    assert (config.experts.rank, config.expert("squad").train_rows, config.expert("mnli").train_rows) == (4, 7, 9)
    assert (config.expert("sst2").rank, config.expert("sst2").targets) == (2, ("query",))
    tree = find_task("mnli").model_dump(mode="json")
    tree["columns"]["text_pair"] = tree["columns"].pop("pair")
    tree["overrides"], tree["pos_label"] = {"num_train_epochs": 2}, tree["labels"][0]
    del tree["hyper"], tree["positive"]
    other = find_task(str(written(tmp_path / "mnli.yaml", tree)))
    assert (other.columns, other.hyper, other.positive) == (find_task("mnli").columns, {"epochs": 2}, other.labels[0])


def test_what_is_written_has_the_settings_own_names(tmp_path: Path) -> None:
    config = compose("quickstart", ["router.num_train_epochs=3", "task.sst2.overrides.num_train_epochs=2"])
    assert config.digest() == compose("quickstart", ["router.epochs=3", "task.sst2.hyper.epochs=2"]).digest()
    assert not {other for _, other in aliases()} & set(words_of(yaml.safe_load(config.to_yaml())))
    old = yaml.safe_load(config.to_yaml())
    old["router"]["num_train_epochs"] = old["router"].pop("epochs")
    assert load(written(tmp_path / "config.yaml", old)) == config


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ["router.num_train_epochs=3", "router.epochs=3"],
            "'router.num_train_epochs' and 'router.epochs' are",
        ),
        (["router={epochs: 3, num_train_epochs: 3}"], "router: 'epochs' and 'num_train_epochs' are two names of one"),
        (["task.sst2.overrides.r=1", "task.sst2.hyper.rank=1"], "task.sst2.hyper.rank: 'task.sst2.overrides.r' and"),
        (["router.num_train_epoch=3"], "did you mean 'router.num_train_epochs'?"),
        (["router.num_train_epochs=0"], "router.epochs: got 0"),
    ],
)
def test_what_is_wrong_names_both(words: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose("quickstart", words)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_gives_both_names_is_refused(tmp_path: Path) -> None:
    tree = {"router": {"epochs": 3, "num_train_epochs": 3}}
    with pytest.raises(ConfigError, match="router: 'epochs' and 'num_train_epochs' are two names of one setting"):
        compose("quickstart", config_file=written(tmp_path / "both.json", tree))


def test_no_two_settings_share_a_name() -> None:
    for _, model in models():
        given = [mark.name for info in model.model_fields.values() for mark in info.metadata if isinstance(mark, Alias)]
        names = [*given, *model.model_fields]
        assert len(names) == len(set(names)), model


def test_the_page_lists_every_other_name() -> None:
    table = PAGE.read_text(encoding="utf-8").split("## Other names")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    listed = {(own.strip("`"), other.strip("` ")) for own, others in rows for other in others.split(",")}
    assert listed == set(aliases())


def written(path: Path, tree: object) -> Path:
    path.write_text(json.dumps(tree) if path.suffix == ".json" else yaml.safe_dump(tree), encoding="utf-8")
    return path


def words_of(tree: object) -> Iterator[str]:
    """Yield every key of a tree."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield key
        yield from words_of(value)
