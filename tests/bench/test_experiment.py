"""What the arms of one seed share: one base, over which each mounts what it tries and the system stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dynamorouter.bench.arms.base import build_arm
from dynamorouter.bench.experiment import Experiment
from dynamorouter.bench.leave_one_out import route_weights
from dynamorouter.config.schema import Config
from dynamorouter.data.prepare import load_prepared
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.config import BaseSpec
from dynamorouter.model.heads.base import EncoderHead
from dynamorouter.model.lora.gates import RowGate
from dynamorouter.system.system import System
from dynamorouter.tasks.answer import Answer
from support.tinyrun import settings


@pytest.fixture
def config(home: Path) -> Config:
    """Return the settings of the finished run, with a comparison."""
    return settings(home, "bench.enabled=true", "bench.tune_rows=4", "bench.evaluations=2", "router.epochs=3")


def test_one_base_serves_the_system_and_all_that_arms_try(
    config: Config, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    load = Base.load

    def counted(spec: BaseSpec, **options: Any) -> Base:
        loads.append(spec.name)
        return load(spec, **options)

    monkeypatch.setattr(Base, "load", staticmethod(counted))
    experiment = Experiment.open(config, finished, load_prepared(finished / "data", list(config.task)))
    answers = {}
    for name in ("oracle", "merge/linear", "base", "tuned/fisher", "joint", "random_lora", "router/own"):
        arm = build_arm(name)
        arm.fit(experiment)
        arm.prepare(experiment, "mood")
        answers[name] = arm.answer(experiment, "mood")
    others = [expert for expert in experiment.system.experts if expert.name != "mood"]
    weights = route_weights(experiment, others, experiment.rows("train", "mood", 6))
    assert weights.sum() == pytest.approx(1.0, abs=1e-5)
    assert len(loads) == 1
    again = build_arm("oracle")
    again.fit(experiment)
    assert again.answer(experiment, "mood") == answers["oracle"]

    experiment.uninstall()
    texts = [record.text for record in experiment.rows("test", "mood")]
    alone = System.load(finished / "phases" / "router", device="cpu", tokens_per_batch=config.experts.tokens_per_batch)
    alone.use_router(experiment.system.router, experiment.system.classes)
    for system in (experiment.system, alone):
        named = system.predict(texts, tasks=["mood"] * len(texts))
        assert same_answers([row.answer for row in named], answers["oracle"])
        assert same_answers([row.answer for row in system.predict(texts)], answers["router/own"])


def test_an_ensemble_answers_by_the_mean_of_the_logits(config: Config, finished: Path) -> None:
    experiment = Experiment.open(config, finished, load_prepared(finished / "data", list(config.task)))
    arm = build_arm("ensemble")
    arm.fit(experiment)
    answers = arm.answer(experiment, "mood")
    base, expert = experiment.base, experiment.expert("mood")
    assert isinstance(expert.head, EncoderHead)
    records = experiment.rows("test", "mood")
    windows = base.encoder.windows([(record.text, None) for record in records], max_tokens=32, stride=8)
    first = [window for window in windows if window.part == 0]
    single = [window for window in first if sum(other.row == window.row for other in windows) == 1]
    assert len(single) > 5  # rows of one window, whose answer is that of its logits
    with torch.inference_mode():
        for window in single:
            batch = base.encoder.collate([window.encoding], base.device)
            gates = [RowGate(torch.tensor([slot])) for slot in range(3)]
            logits = [expert.head.logits(base.forward(batch, gate), batch.mask) for gate in gates]
            probabilities = torch.stack(logits).mean(dim=0).softmax(dim=-1)[0]
            answer = answers[window.row]
            assert answer is not None and answer.value == expert.task.labels[int(probabilities.argmax())]
            assert answer.score == pytest.approx(float(probabilities.max()), abs=1e-5)


def same_answers(ours: list[Answer | None], theirs: list[Answer | None]) -> bool:
    """Tell whether answers say the same with the same certainty; batches of other rows round otherwise."""
    pairs = [(one, other) for one, other in zip(ours, theirs, strict=True) if one is not None and other is not None]
    return len(pairs) == len(ours) and all(
        one.value == other.value and one.score == pytest.approx(other.score, abs=1e-5) for one, other in pairs
    )
