"""The log of a run, its resumption, and the optional services."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dynamorouter.errors import DataError, MissingExtraError
from dynamorouter.utils.tracking import Tracker, TrackingConfig


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_each_line_holds_step_phase_and_values(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        tracker.log(1, "experts", loss=0.5, task="sst2", lr={"sst2": torch.tensor(1.0)})
        assert lines(tmp_path) == [{"step": 1, "phase": "experts", "loss": 0.5, "task": "sst2", "lr": {"sst2": 1.0}}]
        tracker.log(2, "router", loss=float("nan"), best=float("-inf"))
    assert lines(tmp_path)[1] == {"step": 2, "phase": "router", "loss": "nan", "best": "-inf"}


def test_a_resumed_log_is_that_of_the_uninterrupted_run(tmp_path: Path) -> None:
    with Tracker(tmp_path / "whole") as tracker:
        for step in range(6):
            tracker.log(step, "experts", text="ünïcode", value=step)
    with Tracker(tmp_path / "cut") as tracker:
        for step in range(3):
            tracker.log(step, "experts", text="ünïcode", value=step)
        offset = tracker.offset()
        tracker.log(3, "experts", text="lost with the crash")
    with (tmp_path / "cut" / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "half a li')
    with Tracker(tmp_path / "cut", resume_at=offset) as tracker:
        for step in range(3, 6):
            tracker.log(step, "experts", text="ünïcode", value=step)
    assert (tmp_path / "cut" / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()


def test_a_log_shorter_than_its_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="holds 3 bytes, but the checkpoint was made when it held 9"):
        Tracker(tmp_path, resume_at=9)
    assert (tmp_path / "log.jsonl").read_text() == "{}\n"


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Tracker(tmp_path, TrackingConfig(tensorboard=True)) as tracker:
        for step in range(3):
            tracker.log(step, "experts", loss=step / 2, task="sst2", lr={"sst2": 0.25})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("experts/loss")] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert [event.value for event in events.Scalars("experts/lr/sst2")] == [0.25] * 3


def test_wandb_works_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    with Tracker(tmp_path, TrackingConfig(wandb=True), config={"seed": 1}) as tracker:
        tracker.log(0, "experts", loss=0.5)
        tracker.log(0, "router", loss=0.25)
    assert len(lines(tmp_path)) == 2
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.parametrize(("field", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_service_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"tracking\.{field}=true .* pip install 'dynamorouter\[track\]'"):
        Tracker(tmp_path, TrackingConfig.model_validate({field: True}))
