"""Exploration on small data whose answers are known, and its numbers beside plain or other people's ways."""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dynamorouter.cli import main as cli
from dynamorouter.errors import ConfigError, DataError
from dynamorouter.explore import survey as report
from dynamorouter.explore.duplicates import duplicates
from dynamorouter.explore.lengths import balance, summary, truncation
from dynamorouter.explore.near import RUN, clusters, shingles
from dynamorouter.explore.relations import correlations, length_classifier, length_relations
from dynamorouter.explore.rows import TaskRows, labels, read_rows
from dynamorouter.explore.vocabulary import vocabulary
from dynamorouter.tasks.task import Columns, Task
from dynamorouter.tasks.text import normalise

ROOT = Path(__file__).parents[2]
MOOD = Task(
    name="mood",
    head="classification",
    columns=Columns(text="text", target="label"),
    labels=("good", "bad"),
    sources={"local": {}},
    max_tokens=8,
    stride=4,
)
ASK = Task(
    name="ask",
    head="causal_lm",
    columns=Columns(text="question", target="answer"),
    sources={"local": {}},
    max_tokens=8,
    stride=4,
)
TAGS = Task(
    name="names",
    head="tags",
    columns=Columns(text="tokens", target="tags"),
    labels=("O", "B-A", "I-A", "B-B", "I-B"),
    sources={"local": {}},
)
WORDS = ["red", "green", "blue", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
         "apple", "pear", "plum", "stone", "river", "hill", "road"]  # fmt: skip


def rows_of(root: Path, task: Task, **splits: list[dict[str, Any]]) -> TaskRows:
    """Write splits as local files, and read them as exploration does."""
    folder = root / task.name
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_rows(task, "local", {"root": str(root)})


def mood(text: str, label: str = "good") -> dict[str, Any]:
    return {"text": text, "label": label}


def test_rows_are_read_as_they_are_and_bad_ones_counted(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, MOOD, train=[mood("a"), mood("a"), mood("b", "fine"), mood(" ")], validation=[mood("c")])
    assert [record.text for record in rows.splits["train"]] == ["a", "a"]
    assert rows.problems == {"unknown_label": 1, "empty": 1}
    assert list(rows.splits) == ["train", "validation"]
    with pytest.raises(DataError, match=r"nothing to explore \(1 unknown_label\)"):
        rows_of(tmp_path / "bad", MOOD, train=[mood("b", "fine")])


def test_a_limit_draws_the_same_rows_again(tmp_path: Path) -> None:
    rows_of(tmp_path, MOOD, train=[mood(f"text {i}") for i in range(50)])
    drawn = [read_rows(MOOD, "local", {"root": str(tmp_path)}, limit=7, seed=seed).records for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 7


def test_balance_of_classes_entities_and_texts(tmp_path: Path) -> None:
    three = balance(rows_of(tmp_path, MOOD, train=[mood(str(i), "bad" if i % 4 == 0 else "good") for i in range(8)]))
    assert three is not None
    assert three["shares"] == {"good": 0.75, "bad": 0.25}
    assert three["ratio"] == pytest.approx(3.0)
    assert three["verdict"] == "not balanced"
    assert three["evenness"] == pytest.approx(-(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)))
    one_sided = balance(rows_of(tmp_path / "one", MOOD, train=[mood("a")]))
    assert one_sided is not None
    assert (one_sided["ratio"], one_sided["verdict"]) == (None, "not balanced")
    tagged = balance(rows_of(tmp_path, TAGS, train=[{"tokens": ["x", "y", "z"], "tags": ["B-A", "I-A", "B-B"]}]))
    assert tagged is not None
    assert tagged["shares"] == {"A": 0.5, "B": 0.5}
    said = [{"question": f"q {i}", "answer": "Yes" if i % 2 else "No"} for i in range(20)]
    written = rows_of(tmp_path, ASK, train=said)
    assert labels(ASK, written.records) is not None
    assert (balance(written) or {})["verdict"] == "balanced"
    free = rows_of(tmp_path / "free", ASK, train=[{"question": f"q {i}", "answer": f"a {i}"} for i in range(20)])
    assert balance(free) is None


def test_quantiles_are_values_that_occur() -> None:
    found = summary(np.array([5, 1, 2, 4, 3]))
    assert (found["min"], found["p50"], found["p95"], found["max"], found["mean"]) == (1, 3, 5, 5, 3.0)


def test_truncation_counts_rows_over_the_window(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, ASK, train=[{"question": "w " * n, "answer": "a b"} for n in (1, 6, 7, 9)])
    found = truncation(rows, None)
    assert (found["unit"], found["window"], found["cut"], found["with_target"]) == ("words", 8, 0.25, 0.5)
    assert truncation(rows, None, max_tokens=1)["cut"] == 0.75

    def letters(texts: list[str], pairs: object, *, truncation: bool) -> dict[str, list[list[str]]]:
        return {"input_ids": [list(text) for text in texts]}

    assert truncation(rows, letters)["unit"] == "tokens"
    assert truncation(rows, letters)["cut"] == 0.75


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=10, max_size=40))
def test_correlations_are_scipys(pairs: list[tuple[int, int]]) -> None:
    from scipy.stats import pearsonr, spearmanr

    one, two = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    found = correlations(one, two, seed=0, resamples=20)
    if len(set(one)) < 2 or len(set(two)) < 2:
        assert found["pearson"] is None
        return
    assert found["pearson"]["value"] == pytest.approx(pearsonr(one, two).statistic, abs=1e-9)
    assert found["spearman"]["value"] == pytest.approx(spearmanr(one, two).statistic, abs=1e-9)


def test_resampled_ranks_are_those_of_the_rows_written_out() -> None:
    from scipy.stats import rankdata

    from dynamorouter.explore.relations import _ranks

    generator = np.random.default_rng(0)
    values = generator.integers(0, 6, 30)
    counts = generator.multinomial(30, np.full(30, 1 / 30))
    ranks = _ranks(np.unique(values, return_inverse=True)[1], counts.astype(float))
    written_out = np.repeat(np.arange(30), counts)
    assert ranks[written_out] == pytest.approx(rankdata(values[written_out]))


def test_the_interval_of_a_correlation_covers_the_truth() -> None:
    generator, covered = np.random.default_rng(1), 0
    for seed in range(100):
        one = generator.normal(size=120)
        two = 0.5 * one + np.sqrt(0.75) * generator.normal(size=120)
        low, high = correlations(one, two, seed=seed, resamples=200)["pearson"]["ci95"]
        covered += low <= 0.5 <= high
    assert 85 <= covered <= 100


def test_lengths_that_tell_the_class_are_found_and_others_are_not(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)

    def drawn(longer: int, count: int) -> list[dict[str, Any]]:
        found = []
        for number in range(count):
            label = ("good", "bad")[number % 2]
            size = int(generator.integers(3, 30)) + longer * (label == "bad")
            found.append(mood(" ".join(generator.choice(WORDS, size)), label))
        return found

    telling = length_classifier(rows_of(tmp_path / "a", MOOD, train=drawn(20, 400), validation=drawn(20, 200)), seed=0)
    assert telling is not None
    assert telling["gain"]["ci95"][0] > 0.1
    assert telling["accuracy"]["value"] - telling["majority"] == pytest.approx(telling["gain"]["value"])
    assert telling["median_words"]["bad"] > telling["median_words"]["good"] + 10
    silent = length_classifier(rows_of(tmp_path / "b", MOOD, train=drawn(0, 400), validation=drawn(0, 400)), seed=0)
    assert silent is not None
    assert silent["gain"]["ci95"][0] < 0.05
    halves = length_classifier(rows_of(tmp_path / "c", MOOD, train=drawn(20, 400)), seed=0)
    assert halves is not None
    assert (halves["fitted_on"], halves["n"]) == (200, 200)
    assert length_classifier(rows_of(tmp_path / "d", MOOD, train=[mood("a")]), seed=0) is None


def test_length_relations_of_questions_and_answers(tmp_path: Path) -> None:
    same = [{"question": "w " * n, "answer": "a " * (2 * n)} for n in range(1, 30)]
    found = length_relations(rows_of(tmp_path, ASK, train=same), seed=0, resamples=50)
    assert found["text/target"]["pearson"]["value"] == pytest.approx(1.0)
    assert found["text/target"]["spearman"]["ci95"] == pytest.approx([1.0, 1.0])


def jaccard(one: str, two: str) -> float:
    """Return the similarity of two texts by their runs of words, written out."""
    sets = []
    for text in (one, two):
        words = normalise(text).split()
        sets.append({tuple(words[i : i + RUN]) for i in range(max(1, len(words) - RUN + 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def slow_clusters(texts: list[str], similar: float) -> list[int]:
    """Compare every text with every other, and join until nothing changes."""
    found = list(range(len(texts)))
    for i, j in itertools.combinations(range(len(texts)), 2):
        if normalise(texts[i]) and normalise(texts[j]) and jaccard(texts[i], texts[j]) >= similar:
            old, new = max(found[i], found[j]), min(found[i], found[j])
            found = [new if own == old else own for own in found]
    return found


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.e2e) for seed in (1, 2))])
def test_clusters_are_those_of_comparing_all_pairs(seed: int) -> None:
    generator = np.random.default_rng(seed)
    texts = []
    for _ in range(60):
        words = list(generator.choice(WORDS, 25))
        texts.append(" ".join(words))
        for changes in (1, 2, 6):
            varied = list(words)
            for place in generator.choice(25, changes, replace=False):
                varied[place] = generator.choice(WORDS)
            texts.append(" ".join(varied))
    texts += ["", "?!", "one", "One.", "one two", "ONE, two!"]
    found, wanted = clusters(texts, seed=seed).tolist(), slow_clusters(texts, 0.7)
    # A pair right at the threshold may be missed, with a chance of about one in a hundred; none may be made up.
    agree = sum(a == b for a, b in zip(found, wanted, strict=True))
    assert agree >= len(texts) - 6
    assert all(wanted[own] == wanted[i] for i, own in enumerate(found))
    assert len(set(wanted)) < len(texts) - 60
    assert found[-6:] == wanted[-6:]


def test_a_large_crowd_of_equal_texts_is_one_cluster() -> None:
    texts = ["the same words again and again"] * 3000 + ["quite another text than all of these"]
    assert set(clusters(texts).tolist()) == {0, 3000}


def test_shingles_are_sets_of_runs() -> None:
    same, other, short, none = shingles(["a b c d", "A, b; c d!", "a", "..."])
    assert (len(same), len(other), len(short), len(none)) == (2, 2, 1, 1)
    assert same.tolist() == other.tolist()


def test_duplicates_within_and_between_splits_and_tasks(tmp_path: Path) -> None:
    long = "one two three four five six seven eight nine ten apple pear plum stone river hill road red green blue"
    near = long.replace("blue", "white")
    first = rows_of(
        tmp_path,
        MOOD,
        train=[mood("Hello there"), mood("hello, there!", "bad"), mood(long), mood("only here")],
        validation=[mood("HELLO THERE"), mood(near), mood("new")],
    )
    second = rows_of(tmp_path, ASK, train=[{"question": "only here", "answer": "x"}, {"question": near, "answer": "y"}])
    found = duplicates([first, second])
    assert found["tasks"]["mood"]["train"] == {"rows": 4, "again": 1, "contradicting": 2, "near_again": 1}
    assert found["tasks"]["mood"]["validation"] == {
        "rows": 3, "again": 0, "contradicting": 1, "near_again": 0, "in_train": 1, "near_in_train": 2,
    }  # fmt: skip
    assert found["between"] == [{"first": "mood", "second": "ask", "equal": 2, "near": 2}]


def test_vocabulary_overlap(tmp_path: Path) -> None:
    first = rows_of(tmp_path, MOOD, train=[mood("a a b"), mood("C")], validation=[mood("a d")])
    second = rows_of(tmp_path, ASK, train=[{"question": "a e", "answer": "never counted"}])
    found = vocabulary([first, second])
    assert found["tasks"]["mood"]["words"] == 6
    assert found["tasks"]["mood"]["different"] == 4
    assert found["tasks"]["mood"]["once"] == 0.75
    assert found["tasks"]["mood"]["unseen"] == {"validation": 0.5}
    assert found["overlap"] == [[1.0, 0.2], [0.2, 1.0]]
    assert found["covered"] == [[1.0, 0.5], [0.5, 1.0]]


def test_answers_in_words_follow_from_the_figures(tmp_path: Path) -> None:
    rows_of(tmp_path, MOOD, train=[mood("w " * (1 + i % 2 * 9) + str(i), ("good", "bad")[i % 2]) for i in range(200)])
    rows_of(tmp_path, ASK, train=[{"question": "w " * n, "answer": "a " * (40 - n)} for n in range(1, 40)])
    found = report.explore([MOOD, ASK], "local", {"root": str(tmp_path)})
    said = {(answer.task, answer.question): answer.words for answer in found.answers}
    assert said["mood", "Are the classes balanced?"].startswith("Yes: from 50.0%")
    assert said["mood", "Does length predict the class?"].startswith("Yes, clearly: accuracy 1.000")
    assert said["ask", "Do rows of a longer question have a longer answer?"].startswith("No, strongly the reverse")
    assert said["ask", "Do held-out rows stand in train?"] == "There are no held-out rows."
    with pytest.raises(ConfigError, match="different names"):
        report.explore([MOOD, MOOD], "local", {"root": str(tmp_path)})


def test_the_command_writes_tables_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("seaborn")
    out = tmp_path / "out"
    words = ["explore", "data", "ag_news", "squad", "--out", str(out), "--limit", "60"]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    assert "ag_news: Does length predict the class?" in result.output
    figures = json.loads((out / "exploration.json").read_text())
    assert figures["tasks"]["ag_news"]["rows"] == {"train": 60, "validation": 60}
    assert {answer["task"] for answer in figures["answers"]} == {"ag_news", "squad"}
    page = (out / "exploration.md").read_text()
    shown = {path.name for path in out.glob("*.png")}
    assert shown == {"class_balance.png", "lengths.png", "length_by_class.png", "length_relation.png",
                     "truncation.png", "vocabulary.png"}  # fmt: skip
    assert all(f"]({name})" in page for name in shown)
    assert all((out / name).stat().st_size > 5000 for name in shown)


def test_no_row_of_the_data_is_written_out(tmp_path: Path) -> None:
    secret = "zanzibar"
    rows = [{"question": f"{secret} {i}", "answer": f"{secret} answer {i}"} for i in range(60)]
    rows_of(tmp_path, ASK, train=rows)
    found = report.explore([ASK], "local", {"root": str(tmp_path)})
    report.write(found, tmp_path / "out")
    assert all(secret not in path.read_text() for path in (tmp_path / "out").iterdir())


def test_local_folders_are_found_and_wrong_names_explained(tmp_path: Path) -> None:
    def said(*more: str) -> tuple[int, str]:
        words = ["explore", "data", *more, "--out", str(tmp_path / "out"), "--no-plots"]
        done = CliRunner().invoke(cli.app, words)
        return done.exit_code, done.output + (done.stderr or "")

    code, text = said("--data", str(tmp_path))
    assert code == 2
    assert "holds no folder of a known task" in text
    films = MOOD.model_copy(update={"name": "sst2", "labels": ("negative", "positive")})
    rows_of(tmp_path, films, train=[{"text": "fine", "label": "positive"}])
    code, text = said("--data", str(tmp_path))
    assert code == 0, text
    assert "sst2: 1 train" in text
    code, text = said("sst3")
    assert (code, "did you mean 'sst2'" in text) == (2, True)
    code, text = said("sst2", "--tokenizer", "minilmm")
    assert (code, "did you mean 'minilm'" in text) == (2, True)


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys\nfrom dynamorouter.cli.main import app\n"
        "try: app(['explore', 'data', '--help'])\nexcept SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'numpy', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_documented_figures_are_the_committed_ones() -> None:
    script = ROOT / "benchmarks" / "exploration.py"
    spec = importlib.util.spec_from_file_location("exploration_benchmark", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.PAGE.read_text(encoding="utf-8")
    assert module.filled(page, json.loads(module.RESULTS.read_text())) == page
    assert "ag_news" in page
