"""The built-in data of the two pair tasks: shape, balance, splits, and what must not give the label away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import ModuleType

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from builtin_data import mnli, qqp
from builtin_data._cores import Core, normalise, read_cores, split_cores

Rows = Callable[[str], list[dict[str, object]]]

TASKS = {
    "mnli": (mnli.rows, ("premise", "hypothesis"), {"entailment", "neutral", "contradiction"}),
    "qqp": (qqp.rows, ("question1", "question2"), {"duplicate", "not_duplicate"}),
}
CASES = [pytest.param(*TASKS[name], id=name) for name in TASKS]
FILES = [pytest.param(mnli._CORES, mnli._SEED, id="mnli"), pytest.param(qqp._CORES, qqp._SEED, id="qqp")]


@pytest.mark.parametrize(("rows", "columns", "labels"), CASES)
@pytest.mark.parametrize(("split", "least"), [("train", 400), ("validation", 100)])
def test_rows_have_the_native_columns_and_balanced_labels(
    rows: Rows, columns: tuple[str, str], labels: set[str], split: str, least: int
) -> None:
    found = rows(split)
    assert len(found) >= least
    assert all(set(row) == {*columns, "label"} for row in found)
    texts = [row[column] for row in found for column in columns]
    assert all(isinstance(text, str) and text and text == text.strip() and "=>" not in text for text in texts)
    counts = Counter(row["label"] for row in found)
    assert set(counts) == labels
    assert max(counts.values()) == min(counts.values())


@pytest.mark.parametrize(("rows", "columns", "labels"), CASES)
def test_rows_are_deterministic_and_shuffled(rows: Rows, columns: tuple[str, str], labels: set[str]) -> None:
    assert rows("train") == rows("train")
    head = Counter(row["label"] for row in rows("train")[:200])
    assert all(count > 100 / len(labels) for count in head.values())


@pytest.mark.parametrize(("rows", "columns", "labels"), CASES)
def test_no_pair_comes_twice_in_or_across_the_splits(rows: Rows, columns: tuple[str, str], labels: set[str]) -> None:
    keys = [
        frozenset(normalise(str(row[column])) for column in columns)
        for split in ("train", "validation")
        for row in rows(split)
    ]
    assert len(keys) == len(set(keys))
    assert all(len(key) == 2 for key in keys)


@pytest.mark.parametrize(("rows", "columns", "labels"), CASES)
def test_no_text_is_in_both_splits(rows: Rows, columns: tuple[str, str], labels: set[str]) -> None:
    texts = {
        split: {normalise(str(row[column])) for row in rows(split) for column in columns}
        for split in ("train", "validation")
    }
    assert not texts["train"] & texts["validation"]


@pytest.mark.parametrize(("path", "seed"), FILES)
def test_cores_are_split_whole(path: object, seed: int) -> None:
    cores = read_cores(path)  # type: ignore[arg-type]
    parts = [split_cores(cores, split, seed, every=6) for split in ("train", "validation")]
    assert sum(map(len, parts)) == len(cores)

    def heads(part: list[Core]) -> set[str]:
        return {variant[0][1] for core in part for variant in core}

    assert not heads(parts[0]) & heads(parts[1])


@pytest.mark.parametrize(("path", "seed"), FILES)
def test_every_swap_changes_its_core(path: object, seed: int) -> None:
    widened = [core for core in read_cores(path) if len(core) > 1]  # type: ignore[arg-type]
    assert len(widened) >= 20
    assert all(variant != core[0] for core in widened for variant in core[1:])


def test_there_are_enough_cores() -> None:
    inference = read_cores(mnli._CORES)
    assert len(inference) >= 170
    for core in inference:
        assert {label for _, _, label in mnli._unfold(core[0])} == {"entailment", "neutral", "contradiction"}
    questions = read_cores(qqp._CORES)
    assert len(questions) >= 250
    for core in questions:
        marks = Counter(mark for mark, _ in core[0])
        assert marks["="] >= 2 and marks["!"] >= 2 and set(marks) == {"=", "!"}


@pytest.mark.parametrize(
    ("module", "column", "most"), [(mnli, "hypothesis", 0.46), (qqp, "question2", 0.58)], ids=["mnli", "qqp"]
)
def test_one_side_alone_hardly_tells_the_label(
    module: ModuleType, column: str, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A third and a half are chance; a single split has too few held-out rows to tell, hence the mean over several.
    scores = []
    for seed in (module._SEED, 1, 2, 3):
        monkeypatch.setattr(module, "_SEED", seed)
        train, held_out = module.rows("train"), module.rows("validation")
        model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(max_iter=1000))
        model.fit([row[column] for row in train], [row["label"] for row in train])
        scores.append(model.score([row[column] for row in held_out], [row["label"] for row in held_out]))
    assert sum(scores) / len(scores) <= most


@pytest.mark.parametrize("rows", [mnli.rows, qqp.rows], ids=["mnli", "qqp"])
def test_an_unknown_split_is_refused_by_name(rows: Rows) -> None:
    with pytest.raises(ValueError, match=r"'test'.*train and validation"):
        rows("test")
