"""The built-in sentiment and news rows: shape, balance, determinism, and no core in both splits."""

from __future__ import annotations

import re
from collections import Counter
from types import ModuleType

import pytest

from builtin_data import ag_news, sst2

MODULES = [pytest.param(sst2, id="sst2"), pytest.param(ag_news, id="ag_news")]
MIN_ROWS = {"train": 400, "validation": 100}
MIN_CORES = {"sst2": 350, "ag_news": 250}


def texts(module: ModuleType, split: str) -> list[str]:
    return [row["text"] for row in module.rows(split)]


def normalised(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def core_texts(module: ModuleType, split: str) -> set[str]:
    """Return the cores of a split as they stand in the file, the vocabulary of short verdicts left out."""
    kept = module.cores(split)
    if module is sst2:
        return {core for kind, found in kept.items() if kind.endswith(sst2._STANDALONE) for core in found}
    return {part for found in kept.values() for core in found for part in core.split(" | ")}


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("module", MODULES)
def test_rows_are_native_balanced_and_repeatable(module: ModuleType, split: str) -> None:
    rows = module.rows(split)
    assert len(rows) >= MIN_ROWS[split]
    assert all(set(row) == {"text", "label"} for row in rows)
    counts = Counter(row["label"] for row in rows)
    assert set(counts) == set(module.LABELS)
    assert len(set(counts.values())) == 1
    assert rows == module.rows(split)
    labels = [row["label"] for row in rows]
    assert labels != sorted(labels)


@pytest.mark.parametrize("module", MODULES)
def test_no_text_is_repeated_in_or_between_splits(module: ModuleType) -> None:
    seen = [normalised(text) for split in MIN_ROWS for text in texts(module, split)]
    assert all(seen)
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("module", MODULES)
def test_cores_are_many_and_in_one_split_only(module: ModuleType) -> None:
    train, validation = (core_texts(module, split) for split in MIN_ROWS)
    assert not {normalised(core) for core in train} & {normalised(core) for core in validation}
    assert len(train | validation) >= MIN_CORES[module.__name__.rpartition(".")[2]]


@pytest.mark.parametrize("module", MODULES)
def test_texts_are_finished(module: ModuleType) -> None:
    for split in MIN_ROWS:
        for text in texts(module, split):
            assert not re.search(r"[{}<>|\[\]]", text), text
            assert text == text.strip()
            assert "  " not in text
            assert not re.search(r"\ba (?:a|e|i|o)[a-z]+(?:ing|ive|ed)\b", text), text


@pytest.mark.parametrize("module", MODULES)
def test_an_unknown_split_is_refused_by_name(module: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"no split 'test'; allowed are train and validation"):
        module.rows("test")


def test_no_single_word_gives_the_sentiment_away() -> None:
    """A word that is in one review in 25 must stand in reviews of both kinds."""
    rows = sst2.rows("train")
    counts = {label: Counter[str]() for label in sst2.LABELS}
    for row in rows:
        counts[str(row["label"])].update(set(normalised(str(row["text"])).split()))
    for word in set().union(*counts.values()):
        both = [counts[label][word] for label in sst2.LABELS]
        assert sum(both) < len(rows) / 25 or min(both) > 0.15 * sum(both), (word, both)


def test_datelines_and_agencies_are_alike_for_all_topics() -> None:
    rows = ag_news.rows("train")
    dated = Counter(row["label"] for row in rows if re.search(r"[A-Za-z)] --? ", str(row["text"])))
    per_label = len(rows) // len(ag_news.LABELS)
    assert all(0.25 < dated[label] / per_label < 0.65 for label in ag_news.LABELS), dated


def test_styles_of_reviews_are_mixed() -> None:
    found = texts(sst2, "train")
    lower = sum(text == text.lower() for text in found) / len(found)
    assert 0.5 < lower < 0.9
    assert any(" n't" in text for text in found)
    assert any("n't" in text and " n't" not in text for text in found)
