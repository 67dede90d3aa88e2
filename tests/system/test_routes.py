"""Routes of a system that experts join: old ones are kept or nothing changes, and what is written is opened again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dynamorouter.errors import LibraryError, RouterError
from dynamorouter.model.lora.adapter_files import WEIGHTS
from dynamorouter.routing.base import RouterData
from dynamorouter.routing.mlp import TaskMLP
from dynamorouter.system import edit
from dynamorouter.system.routes import joined, kept_accuracy
from dynamorouter.system.system import System
from support.builders import TASKS, make_rows
from support.tinyrun import contents
from system.test_edit import TOPIC, peft_model


@pytest.fixture
def system(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished / "system", tmp_path / "system"))


def topic_rows(count: int) -> list[dict[str, str]]:
    words = ("team match won", "bank shares rose", "music scene film")
    return [{"text": f"{words[i % 3]} {'the ' * (i % 20)} {i}", "label": "abc"[i % 3]} for i in range(count)]


def routes(system: System) -> list[str | None]:
    rows = [row for task in TASKS for row in make_rows(task, 20, start=300)]
    return [p.expert for p in system.predict([r.text for r in rows], [r.pair for r in rows])]


def test_many_rows_of_a_new_task_alone_take_no_route_away(system: Path, home: Path, tmp_path: Path) -> None:
    peft_model(home / "conf" / "models" / "bert", "SEQ_CLS").save_pretrained(tmp_path / "adapter")
    opened = System.load(system)
    before = routes(opened)
    added = opened.add_expert(
        "topic", task=TOPIC, rows=topic_rows(300), adapter=tmp_path / "adapter", labels=TOPIC.labels
    )
    assert added.scored_rows == 300 and added.train_rows == 0 and added.matched_layers == 8
    fit = opened.fit_router()
    assert fit.way == "grown" and fit.classes == ("mood", "names", "ask", "topic")
    assert fit.accuracy["topic"] > 0.9
    after = routes(opened)
    assert sum(one != two for one, two in zip(before, after, strict=True)) <= 4  # of 60
    opened.save(tmp_path / "saved")
    edit.remove_expert(tmp_path / "saved", "topic")
    assert routes(System.load(tmp_path / "saved")) == before


def test_an_expert_that_would_take_anothers_routes_is_refused(system: Path, home: Path, tmp_path: Path) -> None:
    peft_model(home / "conf" / "models" / "bert", "SEQ_CLS").save_pretrained(tmp_path / "adapter")
    opened = System.load(system)
    rows = [{"text": row.text, "label": "abc"[i % 3]} for i, row in enumerate(make_rows(TASKS[0], 60))]
    opened.add_expert("topic", task=TOPIC, rows=rows, adapter=tmp_path / "adapter", labels=TOPIC.labels)
    before = routes(opened)
    with pytest.raises(RouterError, match=r"'mood' 1\.000 -> 0\..* max_loss allows 0\.02.*--max-loss"):
        opened.fit_router()
    assert routes(opened) == before and "topic" not in opened.classes
    fit = opened.fit_router(max_loss=1.0)
    assert fit.accuracy["mood"] < fit.accuracy_before["mood"] and "topic" in opened.classes


def test_routes_that_were_lost_come_back_from_what_is_kept(system: Path) -> None:
    opened = System.load(system)
    before = kept_accuracy(opened)
    spoiled = System.load(system)
    assert spoiled.router is not None
    for value in spoiled.router.state()[1].values():
        value.zero_()
    spoiled.save_router(system)
    assert kept_accuracy(System.load(system)) != before
    fit = edit.fit_router(system)
    assert fit.way == "fitted" and min(fit.accuracy.values()) > 0.8
    assert routes(System.load(system)).count("ask") == 20


def test_what_is_kept_of_rows_grows_and_keeps_the_old(system: Path) -> None:
    opened = System.load(system)
    old = opened.skill("mood")
    assert old is not None
    opened.fit_router({"mood": make_rows(TASKS[0], 300, start=500)}, max_loss=0.2)
    new = opened.skill("mood")
    assert new is not None
    count, total = len(old.states[0]), len(new.states[0])
    assert total == 256 and bool((new.states[0][:count] == old.states[0]).all())
    assert len(joined(old, old).states[0]) == 2 * count


def test_what_cannot_be_opened_again_replaces_nothing(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(system)

    def half(self: System, folder: Path) -> None:
        (folder / "experts" / "mood" / WEIGHTS).write_bytes(b"no tensors")

    monkeypatch.setattr(System, "save_router", half)
    with pytest.raises(LibraryError, match=r"cannot be used: .*/system/experts/mood/.* stays as it was"):
        edit.remove_expert(system, "names")
    assert contents(system) == before
    assert [path.name for path in system.parent.iterdir() if path.name[0] == "."] == []


def test_with_rows_of_all_tasks_the_router_is_fitted_anew_and_else_grown(
    system: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the new fit would lose old routes, the expert joins the router that is there."""
    peft_model(home / "conf" / "models" / "bert", "SEQ_CLS").save_pretrained(tmp_path / "adapter")
    opened = System.load(system)
    opened.add_expert("topic", task=TOPIC, rows=topic_rows(60), adapter=tmp_path / "adapter", labels=TOPIC.labels)
    rows = {task.name: make_rows(task, 24, start=700) for task in TASKS}
    assert opened.fit_router(rows, max_loss=0.3).way == "fitted"
    again = System.load(system)
    again.add_expert("topic", task=TOPIC, rows=topic_rows(60), adapter=tmp_path / "adapter", labels=TOPIC.labels)
    before, fit_anew = routes(again), TaskMLP.fit

    def spoiled(self: TaskMLP, data: RouterData) -> None:
        fit_anew(self, data)
        self.module.out.weight.data.zero_()

    monkeypatch.setattr(TaskMLP, "fit", spoiled)
    assert again.fit_router(rows).way == "grown"
    assert sum(one != two for one, two in zip(before, routes(again), strict=True)) <= 4
