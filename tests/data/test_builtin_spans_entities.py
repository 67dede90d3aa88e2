"""The built-in rows of the answer-span and entity tasks: exact offsets, well-formed tags, splits that share no core."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from builtin_data import conll2003, squad

SPLITS = ("train", "validation")


@cache
def _rows(module: Any, split: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = module.rows(split)
    return found


def _question(row: dict[str, Any]) -> str:
    return f"{row['question']} {row['context']}"


def _sentence(row: dict[str, Any]) -> str:
    return " ".join(row["tokens"])


def _normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower())) or text


@pytest.mark.parametrize("module", [squad, conll2003])
@pytest.mark.parametrize("split", SPLITS)
def test_same_rows_every_time(module: Any, split: str) -> None:
    assert module.rows(split) == _rows(module, split)
    assert len(_rows(module, split)) == module.SIZES[split]


@pytest.mark.parametrize("module", [squad, conll2003])
def test_unknown_split_is_named(module: Any) -> None:
    with pytest.raises(ValueError, match=r"'test'.*train.*validation"):
        module.rows("test")


@pytest.mark.parametrize(("module", "text_of"), [(squad, _question), (conll2003, _sentence)])
def test_no_text_twice_and_none_in_both_splits(module: Any, text_of: Callable[[dict[str, Any]], str]) -> None:
    seen: Counter[str] = Counter()
    for split in SPLITS:
        seen.update({_normal(text_of(row)) for row in _rows(module, split)})
        assert len({text_of(row).lower() for row in _rows(module, split)}) == module.SIZES[split]
    assert [text for text, count in seen.items() if count > 1] == []


@pytest.mark.parametrize("split", SPLITS)
def test_answers_stand_where_they_say(split: str) -> None:
    for row in _rows(squad, split):
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert text
        assert row["context"][start : start + len(text)] == text, row["id"]


def test_answer_starts_cut_no_word() -> None:
    for row in _rows(squad, "train"):
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        around = row["context"][max(0, start - 1) : start + len(text) + 1]
        assert re.search(rf"(?<!\w){re.escape(text)}(?!\w)", around), (row["id"], around)


def test_answers_are_spread_over_the_context() -> None:
    rows = _rows(squad, "train")
    places = [row["answers"]["answer_start"][0] / len(row["context"]) for row in rows]
    counts = Counter(min(3, int(place * 4)) for place in places)
    assert all(counts[quarter] > 0.15 * len(rows) for quarter in range(4)), counts


def test_question_ids_are_unique() -> None:
    ids = [row["id"] for split in SPLITS for row in _rows(squad, split)]
    assert len(ids) == len(set(ids))


def test_squad_cores_are_complete() -> None:
    paragraphs = {split: {core.paragraph for core in squad.cores(split)} for split in SPLITS}
    assert paragraphs["train"].isdisjoint(paragraphs["validation"])
    assert sum(map(len, paragraphs.values())) >= 90
    for split in SPLITS:
        for core in squad.cores(split):
            assert 5 <= len(core.questions) <= 10, core.title
            for question, answer, before in core.questions:
                assert question.endswith("?"), question
                assert before + answer in core.paragraph, (core.title, question)


@pytest.mark.parametrize("split", SPLITS)
def test_tags_are_well_formed(split: str) -> None:
    for row in _rows(conll2003, split):
        tokens, tags = row["tokens"], row["tags"]
        assert len(tokens) == len(tags) > 0
        assert set(tags) <= set(conll2003.LABELS)
        assert not any(re.search(r"[{}\[\]|\s]", token) or not token for token in tokens), tokens
        for before, tag in zip(["O", *tags], tags, strict=False):
            assert not tag.startswith("I-") or before[2:] == tag[2:], (tokens, tags)


def test_frames_are_not_shared() -> None:
    train, validation = ({frame for section in conll2003.frames(split) for frame in section} for split in SPLITS)
    assert train.isdisjoint(validation)
    assert len(train | validation) >= 150


def test_every_entity_type_is_common() -> None:
    for split in SPLITS:
        rows = _rows(conll2003, split)
        counts = Counter(tag[2:] for row in rows for tag in row["tags"] if tag.startswith("B-"))
        assert set(counts) == {"PER", "ORG", "LOC", "MISC"}
        assert min(counts.values()) > 0.05 * sum(counts.values()), counts
        plain = sum(set(row["tags"]) == {"O"} for row in rows)
        assert plain > 0.04 * len(rows)
