"""Routers: every row of every task in one mixed stream, no task told; the chosen expert answers as it is.

All routers are fitted on the same rows, those that the run's own router is fitted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dynamorouter.bench.arms.base import Arm, arms
from dynamorouter.bench.experiment import Experiment, factor_count, factor_work, head_count
from dynamorouter.config.files import CONF
from dynamorouter.inference.policy import ROUTED
from dynamorouter.metrics.routing import router_metrics
from dynamorouter.routing.config import RouterConfig
from dynamorouter.routing.registry import routers
from dynamorouter.system.router import RouterRows, fit_system_router
from dynamorouter.tasks.answer import Answer

OWN = "own"
"""The router as the run's settings have it: what the comparison is about."""


@arms.register("router")
class Routed(Arm):
    """The run's own router, or one of those that ``conf/router`` describes."""

    task_given = False
    about = "the expert and head that this router chooses for each row of a mixed stream; the task is not told"

    @classmethod
    def variants(cls, tasks: Sequence[str]) -> list[str]:
        """Return the run's own router, the router files there are, and the routers without one."""
        usable = dict(routers.items())
        files = {path.stem: _router_file(path.stem)["kind"] for path in (CONF / "router").glob("*.yaml")}
        kinds = files | {name: name for name in usable if name not in files.values()}
        return [OWN, *sorted(name for name, kind in kinds.items() if usable[kind].is_arm)]

    def fit(self, experiment: Experiment) -> None:
        """Fit the router; rows are routed when the first task is to be answered."""
        config, system = experiment.config, experiment.system
        experiment.uninstall()
        own_settings = self.variant == OWN
        settings = config.router.model_dump() if own_settings else router_settings(self.variant, config.router)
        limit = config.router.expert_rows
        rows = RouterRows(
            train={n: experiment.rows("router", n) + experiment.rows("train", n, limit) for n in experiment.names},
            calibrate={n: experiment.rows("calibration", n) for n in experiment.names},
        )
        _, notes = fit_system_router(system, settings, rows, seed=experiment.seed)
        assert system.router is not None
        experts = system.experts
        stored = sum(tensor.numel() for tensor in system.router.state()[1].values())
        self.facts.parameters = factor_count(experts) + head_count(experts) + stored
        self.facts.work = 1 + factor_work(experiment, experts) / len(experts)
        self.facts.train_rows = sum(map(len, rows.train.values()))
        self.facts.options = {"kind": settings["kind"], "layers": notes["layers"], "router_parameters": stored}
        self._answers: list[Answer | None] = []

    def _route(self, experiment: Experiment) -> None:
        system = experiment.system
        experiment.uninstall()
        records = [record for name in experiment.names for record in experiment.rows("test", name)]
        true = [i for i, name in enumerate(experiment.names) for _ in experiment.rows("test", name)]
        self._answers = [None] * len(records)
        chances = np.zeros((len(records), len(system.experts)))
        chosen = np.full(len(records), -1)
        rows = [(record.text, record.pair) for record in records]
        for positions, assignment, answers in system.engine.answers(rows, [ROUTED] * len(rows)):
            assert assignment.route is not None
            chances[positions] = assignment.route.probabilities.cpu().numpy()
            chosen[positions] = assignment.experts
            for position, answer in zip(positions, answers, strict=True):
                self._answers[position] = answer
        measured = router_metrics(true, chances, experiment.names, chosen=chosen)
        right = chosen == np.array(true)
        self.facts.notes = {
            "router": {**measured, "accuracy": float(right.mean()), "reliability": reliability(chances, np.array(true))}
        }
        self._first = {name: true.index(i) for i, name in enumerate(experiment.names)}

    def answer(self, experiment: Experiment, task: str) -> list[Answer | None]:
        """Return the answers to a task's rows; all tasks' rows are routed and answered at once, in mixed batches."""
        if not self._answers:
            self._route(experiment)
        first = self._first[task]
        return self._answers[first : first + len(experiment.rows("test", task))]


def router_settings(name: str, shared: RouterConfig) -> dict[str, Any]:
    """Return the settings of a router file, laid over the run's own for what the file leaves open."""
    file_settings = _router_file(name)
    same_kind = {} if file_settings.get("kind") != shared.kind else shared.model_dump()
    policy = {key: value for key, value in shared.model_dump().items() if key in ("top_k", "abstain_below")}
    return RouterConfig.model_validate({**policy, **same_kind, **file_settings}).model_dump()


def _router_file(name: str) -> dict[str, Any]:
    """Return what the file of a router says; a router without one is taken as it is."""
    import yaml

    path = CONF / "router" / f"{name}.yaml"
    return dict(yaml.safe_load(path.read_text(encoding="utf-8"))) if path.is_file() else {"kind": name}


def reliability(chances: np.ndarray[Any, Any], true: np.ndarray[Any, Any], *, bins: int = 10) -> list[dict[str, float]]:
    """Return confidence, accuracy and count of rows by bins of equal width, empty ones left out."""
    confidence = chances.max(axis=1)
    right = chances.argmax(axis=1) == true
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return [
        {
            "confidence": float(confidence[in_bin].mean()),
            "accuracy": float(right[in_bin].mean()),
            "rows": int(in_bin.sum()),
        }
        for in_bin in (bin_of == b for b in range(bins))
        if in_bin.any()
    ]
