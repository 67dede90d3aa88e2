"""Tiny systems: their settings, rows that they are asked, and whether two predictions are the same."""

from __future__ import annotations

import pytest

from dynamorouter.inference.engine import Engine
from dynamorouter.inference.prediction import Prediction
from dynamorouter.system.system import System
from support.builders import TASKS, make_rows

ROWS = {task.name: make_rows(task, 40) for task in TASKS}


HELD = {task.name: make_rows(task, 12, start=100) for task in TASKS}


SETTINGS = {
    "kind": "mlp",
    "layers": "trunk",
    "hidden": 16,
    "epochs": 40,
    "batch_rows": 8,
    "learning_rate": 0.01,
    "join_pairs": 0.5,
}


LONG = " ".join(["the film was dull"] * 30)


def questions() -> tuple[list[str], list[str | None]]:
    rows = [row for task in TASKS for row in HELD[task.name][:5]]
    return [row.text for row in rows] + [LONG, "who won ?"], [row.pair for row in rows] + [None, LONG]


def same(one: Prediction, other: Prediction, *, tolerance: float = 1e-4) -> None:
    assert (one.task, one.text, one.pair) == (other.task, other.text, other.pair)
    assert one.route == pytest.approx(other.route, abs=tolerance)
    assert one.answer is not None and other.answer is not None
    assert one.answer.value == other.answer.value
    assert one.answer.score == pytest.approx(other.answer.score, abs=tolerance)


def mounted_again(system: System) -> Engine:
    """Return the engine of a system whose experts were displaced, with its experts back in the banks."""
    return Engine(system.bases, system.experts, system.router, classes=system.classes, router_base="tiny", budget=256)
