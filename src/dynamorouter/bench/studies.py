"""Measurements beside the arms, on the first seed: sweeps of merges, what pairs lose, spectra and angles of layers.

All are made on the validation rows, so that nothing can be read off them about the test rows. What a task that no
expert was trained on gets is in ``leave_one_out``. Every measurement is a row of ``OUT/studies.jsonl`` and made once.

Letters: E experts, P and Q width of the experts' joint span, R rank of an expert.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynamorouter.bench.experiment import Experiment, score_of
from dynamorouter.bench.leave_one_out import leave_one_out
from dynamorouter.bench.results import RowFile
from dynamorouter.config.schema import Config
from dynamorouter.merging.deltas import Layers
from dynamorouter.merging.merge import MergeResult, merge_experts
from dynamorouter.merging.registry import merges
from dynamorouter.utils.progress import shown_progress

STUDIES = "studies.jsonl"
SEEN = 1e-6
"""Singular values below this share of the largest do not count as part of an expert's span."""


def check_studies(config: Config) -> list[str]:
    """Return what is wrong with the settings of the studies."""
    method = config.bench.studies.pairs
    data_free = [name for name, merge_method in merges.items() if merge_method.needs is None]
    if method is None or method in data_free:
        return []
    return [f"bench.studies.pairs: got {method!r}; allowed are methods that need no data: {', '.join(data_free)}"]


def study(experiment: Experiment, out: Path) -> None:
    """Make the measurements that are not there yet."""
    file = RowFile(out / STUDIES)
    settings = experiment.config.bench.studies
    planned = [*_sweeps(experiment), *_pairs(experiment)]
    with shown_progress() as progress:
        progress.start("studies", len(planned) + len(experiment.names), unit="parts")
        for key, options in planned:
            if not file.has(**key):
                file.append({**key, **_scores(experiment, options)})
            progress.advance()
        for row in layers(experiment) if settings.layers else ():
            if not file.has(study="layers", layer=row["layer"]):
                file.append(row)
        if settings.unseen_rows and len(experiment.names) > 2:
            for task in experiment.names:
                if not file.has(study="unseen", task=task):
                    file.append({"study": "unseen", "task": task, **leave_one_out(experiment, task)})
                progress.advance()


def _sweeps(experiment: Experiment) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the key of each point of the sweeps, and how to merge there."""
    settings = experiment.config.bench.studies
    for scale in settings.coefficients:
        yield {"study": "coefficient", "at": scale}, {"method": "task_arithmetic", "scale": scale}
    for density in settings.densities:
        yield {"study": "density", "at": density}, {"method": "ties", "density": density}
    for rank in settings.ranks:
        yield {"study": "rank", "at": rank}, {"method": "linear", "output": f"rank={rank}"}


def _pairs(experiment: Experiment) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each pair of experts, and each expert alone for comparison."""
    method = experiment.config.bench.studies.pairs
    if method is None:
        return
    for name in experiment.names:
        yield {"study": "alone", "tasks": [name]}, {"method": "linear", "names": [name]}
    for pair in combinations(experiment.names, 2):
        yield {"study": "pair", "tasks": list(pair)}, {"method": method, "names": list(pair)}


def _scores(experiment: Experiment, options: dict[str, Any]) -> dict[str, Any]:
    """Merge as asked, and score the merged experts' tasks on the validation rows."""
    names = options.get("names", experiment.names)
    merge_options = {key: value for key, value in options.items() if key != "names"}
    result: MergeResult = merge_experts(
        [experiment.expert(name) for name in names], seed=experiment.seed, **merge_options
    )
    experiment.install_factors(result.factors)
    scores = {
        name: score_of(
            experiment.expert(name).task,
            experiment.answers(name, split="validation"),
            experiment.rows("validation", name),
        )
        for name in names
    }
    return {"scores": scores, "error": result.error}


def layers(experiment: Experiment) -> Iterator[dict[str, Any]]:
    """Yield for each layer the experts' singular values and norms, and how far their spans coincide.

    The overlap of two spans is the mean squared cosine of their principal angles, 1 for the same span and about
    R / D for random ones; it is given for the sides that are read from (``right``) and written to (``left``). Where
    one of two experts does not change the layer, there is no cosine (``None``), and the spans share nothing.
    """
    experts = {expert.name: expert.factors for expert in experiment.system.experts}
    for deltas in Layers(experts):
        sides = [torch.linalg.svd(core, full_matrices=False) for core in deltas.span.cores]
        ranks = [int((values > SEEN * values.max().clamp_min(1e-300)).sum()) for _, values, _ in sides]
        left = [u[:, :count] for (u, _, _), count in zip(sides, ranks, strict=True)]
        right = [v[:count].T for (_, _, v), count in zip(sides, ranks, strict=True)]
        flat = deltas.span.cores.flatten(1)
        norms = flat.norm(dim=1)
        cosines = (flat @ flat.T) / norms[:, None] / norms  # NaN beside an expert without a change
        yield {
            "study": "layers",
            "layer": deltas.layer,
            "shape": list(deltas.shape),
            "spectra": {
                name: [float(v) for v in values[:count]]
                for name, (_, values, _), count in zip(deltas.experts, sides, ranks, strict=True)
            },
            "left": _overlaps(left),
            "right": _overlaps(right),
            "cosine": [[None if math.isnan(value) else value for value in row] for row in cosines.tolist()],
        }


def _overlaps(spans: list[Tensor]) -> list[list[float]]:
    """Return the mean squared cosine of the principal angles of every two spans with orthonormal columns."""
    return [
        [
            float((span.T @ other_span).square().sum()) / max(1, min(span.shape[1], other_span.shape[1]))
            for other_span in spans
        ]
        for span in spans
    ]
