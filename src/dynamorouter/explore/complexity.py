"""A look at the complexity of instructions: every feature's distribution, the score, the tiers, examples at the edges.

Letters: N rows, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from dynamorouter.data.complexity.analyzer import Analyzer
from dynamorouter.data.complexity.config import Method
from dynamorouter.data.complexity.features import NAMES
from dynamorouter.data.complexity.prepare import Measured, TierOptions, measured
from dynamorouter.data.complexity.score import analysis_score
from dynamorouter.errors import DataError
from dynamorouter.tasks.record import Record
from dynamorouter.utils.progress import SILENT, Progress

METHODS: tuple[Method, ...] = get_args(Method)
QUANTILES = {"min": 0.0, "p10": 0.1, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9, "max": 1.0}
SHOWN = 3
"""Examples at each edge."""
_CHARS = 160

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known of the complexity of some rows.

    Attributes:
        pipeline: of spaCy.
        names: of the tiers.
        rows: the rows, measured.
        analysis: the score with the response's length in it, ``(N,)``.
        tiers: index of each row's tier by method, where the rows can be parted that way.
        cuts: of the score by method; empty for clusters.
        refused: why the rows cannot be parted, by method.
    """

    pipeline: str
    names: tuple[str, ...]
    rows: Measured
    analysis: Array
    tiers: Mapping[str, NDArray[np.int64]]
    cuts: Mapping[str, tuple[float, ...]]
    refused: Mapping[str, str]

    def columns(self) -> dict[str, Array]:
        """Return every feature, the score and the score with the response, by name, ``(N,)`` each."""
        table = self.rows.table()
        features = {name: table[:, i] for i, name in enumerate(NAMES)}
        return {**features, "score": np.array(self.rows.scores), "score_with_response": self.analysis}

    def to_json(self) -> dict[str, Any]:
        """Return the survey as plain JSON values, rows left out but for the examples."""
        return {
            "pipeline": self.pipeline,
            "rows": len(self.rows.records),
            "features": {name: distribution(values) for name, values in self.columns().items()},
            "tiers": {
                method: {
                    "cuts": list(self.cuts[method]),
                    "rows": {name: int((assigned == i).sum()) for i, name in enumerate(self.names)},
                }
                for method, assigned in self.tiers.items()
            },
            "refused": dict(self.refused),
            "examples": edges(self.rows, self.cuts.get("quantile", ())),
        }


def survey(
    records: Sequence[Record],
    names: Sequence[str],
    *,
    options: TierOptions,
    progress: Progress = SILENT,
) -> Survey:
    """Measure rows, and part them in each of the three ways.

    Args:
        records: instructions with their inputs; the answers' length is read for the analysis score alone.
        names: of the tiers, the simplest first.
        options: pipeline, weights, caps, thresholds, quantiles and seed.
        progress: told how far it is.

    Raises:
        DataError: there are no rows.
    """
    if not records:
        raise DataError("there are no instructions to measure; name a folder with rows")
    analyzer = Analyzer.load(options.complexity.pipeline)
    progress.start("complexity", len(records))
    rows = measured(records, analyzer, options.score, progress=progress)
    table, scores = rows.table(), np.array(rows.scores)
    tiers: dict[str, NDArray[np.int64]] = {}
    cuts: dict[str, tuple[float, ...]] = {}
    refused: dict[str, str] = {}
    for method in METHODS:
        try:
            rule = options.fit(rows, count=len(names), method=method)
        except DataError as error:
            refused[method] = str(error)
            continue
        tiers[method], cuts[method] = rule.assign(table, scores), rule.cuts
    pairs = zip(rows.features, records, strict=True)
    analysis = np.array([analysis_score(features, _answer_words(record), options.score) for features, record in pairs])
    return Survey(analyzer.name, tuple(names), rows, analysis, tiers, cuts, refused)


def distribution(values: Array) -> dict[str, float]:
    """Return mean, deviation and quantiles of ``(N,)``."""
    quantiles = {name: float(np.quantile(values, share)) for name, share in QUANTILES.items()}
    return {"mean": float(values.mean()), "std": float(values.std()), **quantiles}


def edges(rows: Measured, cuts: Sequence[float]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows with the lowest and the highest score, and those nearest to each cut."""
    scores = np.array(rows.scores)
    orders = {"lowest": np.argsort(scores, kind="stable"), "highest": np.argsort(-scores, kind="stable")}
    orders |= {f"at cut {cut:.3f}": np.argsort(np.abs(scores - cut), kind="stable") for cut in cuts}
    return {
        edge: [{"score": rows.scores[i], "text": _shown(rows.records[i])} for i in order[:SHOWN].tolist()]
        for edge, order in orders.items()
    }


def _shown(record: Record) -> str:
    whole = " ".join(f"{record.text} / {record.pair}".split()) if record.pair else " ".join(record.text.split())
    return whole if len(whole) <= _CHARS else f"{whole[: _CHARS - 3]}..."


def _answer_words(record: Record) -> int:
    texts = record.target.get("texts") if isinstance(record.target, dict) else None
    return len(str(texts[0]).split()) if texts else 0
