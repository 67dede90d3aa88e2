"""Whether labels are in another order than was said, told by answers to rows."""

from __future__ import annotations

import numpy as np
import pytest

from dynamorouter.model.heads.label_check import LabelCheck, check_labels
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Columns, Task

LABELS = ("entailment", "neutral", "contradiction")
MNLI = Task(name="nli", head="classification", columns=Columns(text="a", pair="b", target="c"), labels=LABELS)
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
NER = Task(name="ner", head="tags", columns=Columns(text="a", target="c"), labels=TAGS, metrics=("entity_f1",))


def answered(
    right: float, *, rows: int = 120, order: tuple[int, int, int] = (0, 1, 2), seed: int = 0
) -> list[tuple[Record, Answer | None]]:
    """Answer rows, a share of them rightly, by a head whose outputs are called otherwise."""
    draw = np.random.default_rng(seed)
    pairs: list[tuple[Record, Answer | None]] = []
    for i in range(rows):
        truth = i % 3
        said = truth if draw.random() < right else int(draw.integers(3))
        record = Record("a", "b", 0, "nli", LABELS[truth], str(i))
        pairs.append((record, Answer("classification", LABELS[order[said]], 0.9)))
    return pairs


def check(*args: object, **options: object) -> LabelCheck:
    found = check_labels(MNLI, answered(*args, **options))  # type: ignore[arg-type]
    assert found is not None
    return found


def test_a_good_head_in_order_is_confirmed() -> None:
    found = check(0.8)
    assert found.is_confirmed and not found.is_wrong and not found.is_doubtful and found.meant == {}
    assert found.recall == found.best and found.items == 120


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_another_order_is_wrong_and_says_which(order: tuple[int, int, int]) -> None:
    found = check(0.7, order=order)
    assert found.is_wrong and not found.is_confirmed and found.best - found.recall > 0.3
    assert found.meant == {LABELS[order[i]]: LABELS[i] for i in range(3) if order[i] != i}
    assert "'entailment' means" in str(found) or order[0] == 0


def test_chance_is_not_called_an_order() -> None:
    for seed in range(20):
        found = check(0.0, rows=60, seed=seed)
        assert not found.is_wrong and not found.is_confirmed
    assert not check(0.9, rows=3, order=(1, 0, 2)).is_wrong  # too few rows to tell
    assert not check(0.9, rows=6).is_confirmed


def test_rare_tags_count_as_much_as_the_tag_of_most_words() -> None:
    """Exchanged types of entities cost little accuracy where most words are outside of any."""
    exchanged = {"B-PER": "B-LOC", "I-PER": "I-LOC", "B-LOC": "B-PER", "I-LOC": "I-PER"}
    pairs: list[tuple[Record, Answer | None]] = []
    for i in range(40):
        target = ["O"] * 20 + (["B-PER", "I-PER"] if i % 2 else ["B-LOC", "I-LOC"])
        record = Record(" ".join("x" * len(target)), None, 0, "ner", target, str(i))
        pairs.append((record, Answer("tags", [exchanged.get(tag, tag) for tag in target], 0.9)))
    found = check_labels(NER, pairs)
    assert found is not None and found.is_wrong and found.meant == exchanged and found.items == 40 * 22
    pairs = [(record, Answer("tags", list(record.target), 0.9)) for record, _ in pairs]
    found = check_labels(NER, pairs)
    assert found is not None and found.is_confirmed


def test_nothing_is_told_of_what_has_no_labels() -> None:
    record = Record("q", "c", 0, "ask", {"texts": ["c"], "starts": [0]}, "0")
    ask = Task(name="ask", head="span", columns=Columns(text="q", target="a", pair="c"), metrics=("squad_f1",))
    assert check_labels(ask, [(record, Answer("span", "c", 0.5))]) is None
    assert check_labels(MNLI, [(answered(1.0)[0][0], None)]) is None
