"""The comparison on tasks whose answers are written: labels as text, and numbers, on a tiny decoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynamorouter.bench.report.report import write_reports
from dynamorouter.bench.results import ROWS, RowFile
from dynamorouter.bench.run import bench
from dynamorouter.config.compose import compose
from dynamorouter.config.schema import Config
from dynamorouter.errors import ConfigError
from dynamorouter.runs.run import open_run
from support.tinylm import write_lm

TASKS = {
    "topic": "columns: {text: text, target: label}\nmetrics: [text_match, lm_loss]\n",
    "adding": "columns: {text: question, target: answer}\nmetrics: [final_number, lm_loss]\n",
}
RECIPE = """# @package _global_
# Tiny.
defaults:
  - override /base: lm
  - override /data: local
  - override /task: [topic, adding]

recipe: tinytext
data: {when_short: overlap}
experts: {rank: 2, alpha: 4, trunk_depth: 2, train_rows: 12, epochs: 1, batch_rows: 4, tokens_per_batch: 512}
router: {hidden: 8, epochs: 2, train_rows: 8}
evaluation: {select_rows: 4, calibrate_rows: 4, report_rows: 6}
device: cpu
bench: {enabled: true, seeds: 1, evaluations: 2, tune_rows: 3, resamples: 50, permutations: 50,
  arms: [majority, words/*, base, oracle, mixture, router/knn, merge/linear, joint, full, calibration_lora,
    tuned/ties, tuned/adamerging, tuned/fisher, tuned/regmean, tuned/lorahub],
  studies: {coefficients: [0.5], densities: [], ranks: [], layers: true}}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Return the settings of a tiny comparison of two tasks that are written."""
    home = tmp_path_factory.mktemp("text")
    write_lm(home / "lm", "gpt2")
    for folder in ("base", "task", "recipe"):
        (home / "conf" / folder).mkdir(parents=True)
    (home / "conf" / "base" / "lm.yaml").write_text(f"name: lm\npath: {home / 'lm'}\n")
    for name, text in TASKS.items():
        head = f"# @package task.{name}\nname: {name}\nhead: causal_lm\nprompt: query_answer\nlabels: []\n"
        more = "max_tokens: 64\nstride: 8\ngeneration: {max_new_tokens: 4}\nsources: {local: {}}\n"
        (home / "conf" / "task" / f"{name}.yaml").write_text(head + text + more)
    (home / "conf" / "recipe" / "tinytext.yaml").write_text(RECIPE)
    for split, count in (("train", 24), ("validation", 12), ("test", 8)):
        start = {"train": 0, "validation": 100, "test": 200}[split]
        rows = {
            "topic": [
                {"text": f"{'goal team' if i % 3 else 'bank rate'} {i}", "label": "Sports" if i % 3 else "Business"}
                for i in range(start, start + count)
            ],
            "adding": [
                {"question": f"What is {i} and {i + 1}?", "answer": f"#### {2 * i + 1}"}
                for i in range(start, start + count)
            ],
        }
        for name, own in rows.items():
            path = home / "rows" / name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in own))
    return compose("tinytext", [f"search_path=[{home / 'conf'}]", f"data.root={home / 'rows'}"])


@pytest.mark.e2e
def test_arms_answer_in_text(config: Config, tmp_path: Path) -> None:
    out = tmp_path / "out"
    open_run(config, out, resume=False)
    bench(config, out)
    rows = {(row["arm"], row["task"]): row for row in RowFile(out / ROWS)}
    assert {task for arm, task in rows if arm == "oracle"} == {"topic", "adding"}
    assert {task for arm, task in rows if arm.startswith("words/")} == {"topic"}  # a number is no label
    assert rows["words/logistic", "topic"]["value"] == 1.0
    tuned = {arm for arm, _ in rows if arm.startswith("tuned/")}
    assert tuned == {"tuned/ties", "tuned/fisher", "tuned/regmean", "tuned/lorahub"}  # texts have no entropy of classes
    assert set(rows["majority", "topic"]["metrics"]) == {"text_match"}  # the loss of a text is no answer
    assert rows["majority", "topic"]["value"] > 0.5 and rows["majority", "adding"]["value"] == 0.0
    assert set(rows["words/bayes", "topic"]["notes"]["top_features"]) == {"Business", "Sports"}
    found = write_reports(config, out)
    assert found["metrics"] == {"topic": "text_match", "adding": "final_number"}
    assert any("goal" in words for words in found["words"]["words/bayes on topic"]["Sports"])


def test_a_primary_metric_of_which_less_is_better_is_refused(config: Config, tmp_path: Path) -> None:
    task = config.task["topic"].model_copy(update={"metrics": ("lm_loss",)})
    wrong = config.model_copy(update={"task": {**config.task, "topic": task}})
    with pytest.raises(ConfigError, match=r"topic\.metrics: the primary metric is 'lm_loss'"):
        bench(wrong, tmp_path)
