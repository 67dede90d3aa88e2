"""Merges: all experts made one, each task's head over it; as the method comes, and tuned on held-out rows.

Tuning has the same budget for every method: the defaults, then points of one quasi-random sequence (Sobol) over a
factor on the weights and the method's own options, each judged by the mean primary score on the validation rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from dynamorouter.bench.arms.base import Arm, arms
from dynamorouter.bench.experiment import Experiment, head_count
from dynamorouter.merging.calibration import observed
from dynamorouter.merging.merge import MergeResult, merge_experts
from dynamorouter.merging.registry import merges
from dynamorouter.model.heads.base import choosing_heads
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.task import Task

FACTOR = (0.25, 4.0)
"""Range of the factor on the weights, drawn evenly on a logarithmic scale."""
RANGES: dict[str, tuple[float, float]] = {"density": (0.15, 0.8), "off_diagonal": (0.0, 0.99)}
"""Options of methods that are searched too, drawn evenly."""


SEARCHES = {"objective": "budget", "entropy": "steps"}
"""Methods that search by themselves, by what they need, and the option that says how often they may look."""


def methods(experts: int, *, data_free: bool) -> list[str]:
    """Return the methods that merge so many experts, all of them or those that need nothing else."""
    return [
        name for name, method in merges.items() if method.experts in (0, experts) and not (data_free and method.needs)
    ]


@arms.register("merge")
class Merged(Arm):
    """One method with its own defaults; only methods that need no data."""

    about = "all experts merged into one by this method with its defaults and no data, each task's head over it"

    @classmethod
    def variants(cls, tasks: Sequence[str]) -> list[str]:
        """Return the methods."""
        return methods(len(tasks), data_free=True)

    def fit(self, experiment: Experiment) -> None:
        """Merge, and score the validation rows once, so that merges can be ranked on other rows than the report's."""
        self._set_result(experiment, merged(experiment, self.variant, {}))
        self.facts.select = self._validation_score(experiment)

    def answer(self, experiment: Experiment, task: str) -> list[Answer | None]:
        """Answer through the merge, under the task's head."""
        experiment.install_factors(self._result.factors, key=self._result)
        return experiment.answers(task)

    def _set_result(self, experiment: Experiment, result: MergeResult) -> None:
        self._result = result
        self.facts.parameters = stored_numbers(result) + head_count(experiment.system.experts)
        self.facts.options = {**dict(result.options), "rank": max(result.ranks.values(), default=0)}
        self.facts.notes = {"error": result.error, "merge_seconds": result.seconds, "said": list(result.notes)}

    def _validation_score(self, experiment: Experiment) -> float:
        experiment.install_factors(self._result.factors, key=self._result)
        return experiment.select_score(experiment.config.bench.tune_rows)


@arms.register("tuned")
class Tuned(Merged):
    """One method with the best of a few settings on the validation rows, or one that searches by itself as often."""

    about = "a merge, its weights and options chosen on validation rows with as many evaluations as every other"

    @classmethod
    def variants(cls, tasks: Sequence[str]) -> list[str]:
        """Return the methods, those that need data too."""
        return methods(len(tasks), data_free=False)

    def suits(self, tasks: Sequence[Task]) -> bool:
        """Tell whether every task has classes, where certainty of the answers is what is searched for."""
        if merges.get(self.variant).needs != "entropy":
            return True
        return all(task.head in choosing_heads() for task in tasks)

    def fit(self, experiment: Experiment) -> None:
        """Try the defaults and points of the sequence, and keep the best on the validation rows."""
        settings, method = experiment.config.bench, merges.get(self.variant)
        points = search_points(self.variant, settings.evaluations, seed=experiment.seed)
        extra: dict[str, Any] = {}
        if method.needs in SEARCHES:
            points, extra = [{}], {SEARCHES[method.needs]: settings.evaluations}
        experts, limit = experiment.system.experts, settings.tune_rows
        rows = {expert.name: experiment.rows("validation", expert.task.name, limit) for expert in experts}
        with ExitStack() as stack:
            if method.needs is not None:
                calibration = observed(
                    method.needs,
                    experiment.base,
                    experts,
                    rows,
                    limit=limit,
                    budget=experiment.config.experts.tokens_per_batch,
                    seed=experiment.seed,
                )
                extra[method.needs] = stack.enter_context(calibration)
            results = [merged(experiment, self.variant, point, **extra) for point in points]
        scores = []
        for result in results:
            self._set_result(experiment, result)
            scores.append(self._validation_score(experiment))
        best = max(range(len(points)), key=lambda i: scores[i])
        self._set_result(experiment, results[best])
        self.facts.select = scores[best]
        self.facts.evaluations = settings.evaluations + (method.needs in SEARCHES)
        self.facts.train_rows = settings.tune_rows * len(experiment.names)
        self.facts.options |= _rounded(points[best])
        self.facts.notes["tried"] = [
            {"select": score, **_rounded(point)} for score, point in zip(scores, points, strict=True)
        ]


def merged(experiment: Experiment, name: str, point: Mapping[str, float], **options: Any) -> MergeResult:
    """Merge all experts, with the method's defaults but for a point of the search, which also scales the weights."""
    experts, method = experiment.system.experts, merges.get(name)
    factor, default_scale = point.get("factor", 1.0), method.options.get("scale")
    weight = 1.0 if method.weights == "ones" else 1 / len(experts)
    if default_scale is None:
        weight *= factor
    else:  # methods that divide by the weights take their coefficient as an option
        options["scale"] = default_scale * factor
    return merge_experts(
        experts,
        method=name,
        weights=[weight] * len(experts),
        output=experiment.config.bench.output,
        seed=experiment.seed,
        **{key: value for key, value in point.items() if key != "factor"},
        **options,
    )


def _rounded(point: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in point.items()}


def search_points(method: str, count: int, *, seed: int) -> list[dict[str, float]]:
    """Return the settings to try: none first, which are the defaults, then points of a scrambled Sobol sequence."""
    from scipy.stats import qmc

    options = merges.get(method).options
    names = [name for name in RANGES if isinstance(options.get(name), float)]
    points: list[dict[str, float]] = [{}]
    if count > 1:
        sequence = qmc.Sobol(len(names) + 1, rng=seed)
        drawn = sequence.random_base2((count - 1).bit_length())[: count - 1]
        for position, *shares in drawn.tolist():
            low, high = FACTOR
            point = {"factor": low * (high / low) ** position}
            for name, share in zip(names, shares, strict=True):
                least, most = RANGES[name]
                point[name] = least + share * (most - least)
            points.append(point)
    return points


def stored_numbers(result: MergeResult) -> int:
    """Count the numbers of a merge as it is best stored: a layer as factors, or dense where that is less."""
    return sum(min(f.a.numel() + f.b.numel(), f.b.shape[0] * f.a.shape[1]) for f in result.factors.values())
