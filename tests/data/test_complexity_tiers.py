"""Tiers by thresholds, quantiles and clusters, and the folder that they are written to."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("spacy")
from builtin_data import instructions
from dynamorouter.data.complexity.analyzer import Analyzer
from dynamorouter.data.complexity.config import ComplexityConfig
from dynamorouter.data.complexity.prepare import TierOptions, prepare_tiers
from dynamorouter.data.complexity.record import complexities
from dynamorouter.data.complexity.tiers import Tiers, fit_tiers
from dynamorouter.data.config import FilterConfig
from dynamorouter.data.prepare import PrepareOptions, prepare
from dynamorouter.errors import ConfigError, DataError
from dynamorouter.explore.complexity import survey
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Columns, Task
from support.toyparse import toy_pipeline

COLUMNS = Columns(text="instruction", target="output", pair="input", extra={"complexity": "complexity"})
TASKS = [
    Task(name=name, head="causal_lm", columns=COLUMNS, metrics=("perplexity",), sources={"local": {"folder": "orders"}})
    for name in ("simple", "medium", "complex")
]


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Analyzer, "load", staticmethod(lambda pipeline="auto": Analyzer(toy_pipeline(), name="toy")))


def write(root: Path, *, train: int = 90, validation: int = 30) -> Path:
    folder = root / "orders"
    folder.mkdir(parents=True)
    for split, count in (("train", train), ("validation", validation)):
        lines = [
            {
                "instruction": " ".join(f"word{split}{i}x{j} ," for j in range(1 + i * 7 % 45)),
                "input": "more of it" if i % 3 else "",
                "output": f"answer {i}",
            }
            for i in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def test_thresholds_put_a_score_on_a_cut_above_it() -> None:
    rule = fit_tiers("thresholds", np.zeros((0, 9)), np.zeros(0), count=3)
    assert rule.assign(np.zeros((5, 9)), np.array([0.0, 0.29, 0.3, 0.69, 0.7])).tolist() == [0, 0, 1, 1, 2]


def test_quantiles_make_tiers_of_the_same_size_and_follow_shares() -> None:
    scores = np.linspace(0, 1, 300)
    rule = fit_tiers("quantile", np.zeros((300, 9)), scores, count=3)
    assert Counter(rule.assign(np.zeros((300, 9)), scores).tolist()) == {0: 100, 1: 100, 2: 100}
    rule = fit_tiers("quantile", np.zeros((300, 9)), scores, count=3, quantiles=(0.5, 0.9))
    assert Counter(rule.assign(np.zeros((300, 9)), scores).tolist()) == {0: 150, 1: 120, 2: 30}


def test_clusters_are_ordered_by_score_and_depend_on_train_alone() -> None:
    draw = np.random.default_rng(0)
    table = np.concatenate([draw.normal(centre, 0.1, (40, 9)) for centre in (5.0, 0.0, 10.0)])
    rule = fit_tiers("kmeans", table, table[:, 0] / 10, count=3, seed=1)
    assert rule.assign(table, table[:, 0]).tolist() == [1] * 40 + [0] * 40 + [2] * 40
    assert rule == fit_tiers("kmeans", table, table[:, 0] / 10, count=3, seed=1)
    assert Tiers.from_json(json.loads(json.dumps(rule.to_json()))) == rule


@pytest.mark.parametrize("cuts", [(0.3,), (0.7, 0.3), (0.3, 0.3)])
def test_wrong_cuts_are_refused(cuts: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="2 ascending cuts"):
        fit_tiers("thresholds", np.zeros((0, 9)), np.zeros(0), count=3, thresholds=cuts)


def test_scores_that_are_all_alike_cannot_be_parted() -> None:
    with pytest.raises(DataError, match="cannot be parted"):
        fit_tiers("quantile", np.zeros((9, 9)), np.ones(9), count=3)
    with pytest.raises(DataError, match="differ in too little"):
        fit_tiers("kmeans", np.zeros((9, 9)), np.ones(9), count=3)


def test_tiers_hold_every_row_once_and_its_score_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "tiers"
    found = prepare_tiers(TASKS, out, source="local", overrides={"root": str(write(tmp_path))}, options=TierOptions())
    assert found["pipeline"] == "toy"
    assert sum(found["rows"]["train"].values()) == 90
    data = prepare(
        [task.model_copy(update={"sources": {"local": {}}}) for task in TASKS],
        tmp_path / "data",
        source="local",
        source_options={"root": str(out)},
        options=PrepareOptions(router_rows=5, joint_rows=3, select_rows=3, calibrate_rows=3, report_rows=4),
    )
    means = []
    for task in TASKS:
        rows = data.split("train", task.name)
        scores = complexities(rows)
        means.append(np.mean(scores))
        assert all(0 <= score <= 1 for score in scores)
        assert all("complexity" not in f"{row.text} {row.pair}" for row in rows)
        assert all(row.target["texts"][0].startswith("answer") for row in rows if isinstance(row.target, dict))
    assert means == sorted(means)
    again = prepare_tiers(TASKS, out, source="local", overrides={"root": str(tmp_path)}, options=TierOptions())
    assert again == found


@pytest.mark.e2e
def test_what_was_written_is_reused_unless_something_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, root = tmp_path / "tiers", write(tmp_path)
    calls: list[int] = []
    monkeypatch.setattr(Analyzer, "features", _counted(Analyzer.features, calls))
    options = TierOptions()
    prepare_tiers(TASKS, out, source="local", overrides={"root": str(root)}, options=options)
    prepare_tiers(TASKS, out, source="local", overrides={"root": str(root)}, options=options)
    assert len(calls) == 2  # train and validation, once each
    (out / "simple" / "train.jsonl").write_text("{}\n")
    prepare_tiers(TASKS, out, source="local", overrides={"root": str(root)}, options=options)
    assert len(calls) == 4
    other = replace(options, seed=5)
    prepare_tiers(TASKS, out, source="local", overrides={"root": str(root)}, options=other)
    assert len(calls) == 6
    (out / "manifest.json").write_text("{")
    prepare_tiers(TASKS, out, source="local", overrides={"root": str(root)}, options=other)
    assert len(calls) == 8


def test_digests_of_tiers_are_made_of_the_values_that_they_always_were() -> None:
    settings = {"pipeline": "own", "tiers": "thresholds", "thresholds": (0.2, 0.6), "weights": {"length": 1.0}}
    changed = TierOptions(ComplexityConfig.model_validate(settings), FilterConfig(max_words=90), "fail", 3)
    for options, digest in ((TierOptions(), "568f2b9022ee7b83"), (changed, "14c8a0506ed4bad8")):
        values = json.dumps(options.to_json(), sort_keys=True)
        assert hashlib.sha256(values.encode()).hexdigest()[:16] == digest  # as commit b129b41 computes it


def _counted(method: object, calls: list[int]) -> object:
    def features(self: Analyzer, pairs: object, **options: object) -> object:
        calls.append(1)
        return method(self, pairs, **options)  # type: ignore[operator]

    return features


def test_an_empty_tier_is_an_error_with_all_counts_and_the_remedy(tmp_path: Path) -> None:
    options = TierOptions(ComplexityConfig(tiers="thresholds", thresholds=(0.97, 0.99)))
    with pytest.raises(DataError, match=r"tier 'complex' has 0 rows.*simple .*complexity.tiers=quantile"):
        prepare_tiers(
            TASKS, tmp_path / "tiers", source="local", overrides={"root": str(write(tmp_path))}, options=options
        )
    assert not (tmp_path / "tiers" / "manifest.json").exists()


def test_a_row_that_is_held_out_leaves_train_before_there_are_tiers(tmp_path: Path) -> None:
    root = write(tmp_path)
    row = json.loads((root / "orders" / "validation.jsonl").read_text().splitlines()[20])
    with (root / "orders" / "train.jsonl").open("a") as file:
        file.write(json.dumps({**row, "instruction": row["instruction"].replace(",", ";")}) + "\n")
    found = prepare_tiers(TASKS, tmp_path / "t", source="local", overrides={"root": str(root)}, options=TierOptions())
    assert found["leaks"] == {"found": 1, "left": 0}


def test_tasks_that_are_no_tiers_are_refused(tmp_path: Path) -> None:
    other = TASKS[1].model_copy(update={"columns": COLUMNS.model_copy(update={"text": "question"})})
    with pytest.raises(ConfigError, match="do not read the same data"):
        prepare_tiers([TASKS[0], other], tmp_path, source="local", options=TierOptions())
    plain = TASKS[0].model_copy(update={"columns": COLUMNS.model_copy(update={"extra": {}})})
    with pytest.raises(ConfigError, match="cannot be a tier"):
        prepare_tiers([plain, plain.model_copy(update={"name": "b"})], tmp_path, source="local", options=TierOptions())


def test_survey_tells_every_feature_and_all_tiers() -> None:
    records = [Record("word , " * (1 + i % 40), None, 0, "t", {"texts": ["a b"]}, str(i)) for i in range(60)]
    found = survey(records, ("simple", "medium", "complex"), options=TierOptions()).to_json()
    assert found["features"]["length"]["max"] == 40
    assert set(found["tiers"]) == {"thresholds", "quantile", "kmeans"}
    assert all(sum(tier["rows"].values()) == 60 for tier in found["tiers"].values())
    assert found["examples"]["lowest"][0]["score"] <= found["examples"]["highest"][0]["score"]
    assert found["features"]["score_with_response"]["mean"] < found["features"]["score"]["mean"]


def test_builtin_instructions_are_many_different_and_split_by_fact() -> None:
    train, held = instructions.rows("train"), instructions.rows("validation")
    assert (len(train), len(held)) == (900, 150)
    keys = [{f"{row['instruction']} {row['input']}".lower() for row in rows} for rows in (train, held)]
    assert [len(found) for found in keys] == [900, 150]
    assert not keys[0] & keys[1]
    facts = [instructions.facts(split) for split in ("train", "validation")]
    assert not any(set(facts[0][kind]) & set(facts[1][kind]) for kind in facts[0])
    assert all(row["output"] and "{" not in f"{row['instruction']}{row['input']}{row['output']}" for row in train)
    lengths = [len(str(row["instruction"]).split()) for row in train]
    assert min(lengths) <= 3 and max(lengths) >= 50
    assert instructions.rows("train") == train
