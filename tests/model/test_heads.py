"""Laws of every head that answers from hidden states, and a kind of head that is defined here alone.

Letters: B windows, S positions, D width, L labels.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dynamorouter.config.checks import check_names
from dynamorouter.data.convert import convert
from dynamorouter.data.split import draw
from dynamorouter.errors import ConfigError, MergeError
from dynamorouter.merging.entropy import entropy_of
from dynamorouter.metrics.base import Metric, metrics, score
from dynamorouter.metrics.bootstrap import Array
from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.base import EncoderHead, WindowTarget, build_head, choosing_heads, heads
from dynamorouter.model.text.tokenize import TextPair, Window
from dynamorouter.registry import Registry
from dynamorouter.system.router import RouterRows, fit_system_router
from dynamorouter.system.system import System
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.kinds import HeadKind, RowProblem, head_kind, head_kinds
from dynamorouter.tasks.kinds.base import AnswerValue, NativeRow, kind_of_answer
from dynamorouter.tasks.record import Record, Target
from dynamorouter.tasks.task import Columns, Task
from dynamorouter.training.config import ExpertConfig
from dynamorouter.training.experts import fit_experts
from dynamorouter.training.learner import ExpertPlan
from dynamorouter.training.loop import LoopOptions
from dynamorouter.utils.explain import checked
from support.builders import ASK, MOOD, NAMES, make_rows
from support.systems import HELD, ROWS, SETTINGS

Loader = Callable[..., Base]
READERS = (MOOD, NAMES, ASK)


def test_both_halves_of_every_head_are_registered_and_agree() -> None:
    assert list(heads) == list(head_kinds)
    for name in heads:
        assert heads.get(name).kind == name
        assert heads.get(name).is_generative == head_kind(name).is_generative
        assert kind_of_answer(head_kind(name).answer_kind).answer_kind == head_kind(name).answer_kind


def head_of(task: Task, base: Base, **options: Any) -> EncoderHead:
    head = build_head(task, base.width, options).initialise(torch.Generator().manual_seed(0)).eval()
    assert isinstance(head, EncoderHead)
    return head.requires_grad_(False)


def windows_of(base: Base, task: Task, count: int = 5) -> tuple[list[TextPair], list[Window], Tensor, Tensor]:
    """Return rows, their first windows, random hidden states ``(B, S, D)`` and the mask ``(B, S)``."""
    rows = [(record.text, record.pair) for record in make_rows(task, count)]
    every = base.encoder.windows(rows, max_tokens=task.max_tokens, stride=task.stride)
    windows = [window for window in every if window.part == 0]
    mask = base.encoder.collate([window.encoding for window in windows], base.device).mask
    hidden = torch.randn(*mask.shape, base.width, generator=torch.Generator().manual_seed(1))
    return rows, windows, hidden, mask


@pytest.mark.parametrize("task", READERS, ids=lambda task: task.head)
def test_padding_changes_no_answer(task: Task, tiny_base: Loader) -> None:
    base = tiny_base()
    head = head_of(task, base)
    rows, windows, hidden, mask = windows_of(base, task)
    together = head.parts(head.logits(hidden, mask), windows, rows)
    for i, window in enumerate(windows):
        logits = head.logits(hidden[i : i + 1, : len(window)], mask[i : i + 1, : len(window)])
        alone, batched = (
            head.merge([part], rows[i]) for part in (*head.parts(logits, [window], [rows[i]]), together[i])
        )
        assert alone.value == batched.value and alone.score == pytest.approx(batched.score, abs=1e-5)
        assert alone.kind == head_kind(task.head).answer_kind


@pytest.mark.parametrize("task", READERS, ids=lambda task: task.head)
def test_logits_are_tensor_work_that_exports(task: Task, tiny_base: Loader) -> None:
    base = tiny_base()
    head = head_of(task, base)
    _, _, hidden, mask = windows_of(base, task)

    class Exported(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = head

        def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
            return head.logits(hidden, mask)

    program = torch.export.export(Exported(), (hidden, mask))
    logits = head.logits(hidden, mask)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(program.module()(hidden, mask), logits)


@pytest.mark.parametrize("task", READERS, ids=lambda task: task.head)
def test_linear_heads_and_only_those_give_the_mean_of_logits_for_the_mean_of_states(
    task: Task, tiny_base: Loader
) -> None:
    base = tiny_base()
    _, _, hidden, mask = windows_of(base, task)
    other = hidden.flip(0) * 2
    for options in ({}, {"dense": True}) if task is MOOD else ({},):
        head = head_of(task, base, **options)
        for weights in head.parameters():
            weights.mul_(50)
        mean = (head.logits(hidden, mask) + head.logits(other, mask)) / 2
        apart = float((head.logits((hidden + other) / 2, mask) - mean).abs().max())
        assert head.is_linear == (apart < 1e-3) and (head.is_linear or apart > 0.1)


def test_choices_are_made_among_labels_tags_and_tokens_of_the_context(tiny_base: Loader) -> None:
    base = tiny_base()
    assert choosing_heads() == ["classification", "span", "tags"]
    for task in READERS:
        head = head_of(task, base)
        rows, windows, hidden, mask = windows_of(base, task)
        chances = head.choices(head.logits(hidden, mask), mask, windows, rows).softmax(dim=-1)
        if task is MOOD:
            assert chances.shape == (len(rows), 2)
        elif task is NAMES:
            assert chances.shape == (int(mask.sum()), 5)
        else:
            first, last = chances.unflatten(0, (len(rows), 2)).unbind(dim=1)
            for i, window in enumerate(windows):
                outside = [p for p, s in enumerate(window.encoding.sequence_ids) if s != 1]
                outside += range(len(window), hidden.shape[1])
                assert float(first[i, outside].sum() + last[i, outside].sum()) == 0.0


class MultiLabelKind(HeadKind):
    """Any number of labels for a text; in files they are separated by commas."""

    answer_kind = "labels"
    needs_labels = True

    def target(self, row: NativeRow) -> Target | RowProblem:
        """Return the labels."""
        named = [label for label in str(row.target).split(",") if label]
        unknown = [label for label in named if label not in row.labels]
        return RowProblem("unknown_label", f"{unknown} are not in the list") if unknown else named

    def most_frequent(self, targets: Sequence[Target]) -> Callable[[Record], AnswerValue]:
        """Return the most frequent set of labels."""
        named = list(Counter(tuple(target) for target in targets).most_common(1)[0][0])
        return lambda record: named

    def stratum(self, target: Target) -> str:
        """Return the labels."""
        return ",".join(target)

    def details(self, text: str, value: AnswerValue) -> dict[str, Any]:
        """Return how many labels there are."""
        return {"count": len(value)}


class MultiLabelHead(EncoderHead):
    """A yes or no for each label, over the mean of the hidden states."""

    kind = "multi_label"

    def __init__(self, width: int, labels: Sequence[str], *, threshold: float = 0.5) -> None:
        super().__init__(width, labels, threshold=threshold)
        self.threshold, self.out = threshold, nn.Linear(width, len(labels))

    def logits(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return ``(B, L)``."""
        weights = mask[..., None].to(hidden.dtype)
        return self.out((hidden * weights).sum(dim=1) / weights.sum(dim=1))  # type: ignore[no-any-return]

    def target(self, window: Window, record: Record) -> WindowTarget | None:
        """Return a one for each label of the row."""
        return None if window.part else np.array([int(label in record.target) for label in self.labels])

    def units(self, target: WindowTarget) -> int:
        """One per text."""
        return 1

    def loss(self, hidden: Tensor, mask: Tensor, targets: Sequence[WindowTarget]) -> Tensor:
        """Binary cross-entropy, summed over the labels."""
        gold = torch.as_tensor(np.stack(list(targets)), device=hidden.device).float()
        return functional.binary_cross_entropy_with_logits(self.logits(hidden, mask), gold, reduction="none").sum(1)

    def parts(self, logits: Tensor, windows: Sequence[Window], rows: Sequence[TextPair]) -> list[Any]:
        """Return the probability of each label."""
        return list(logits.sigmoid().tolist())

    def merge(self, parts: Sequence[Any], row: TextPair) -> Answer:
        """Take the labels of the first window that are more probable than the threshold."""
        chosen = [label for label, p in zip(self.labels, parts[0], strict=True) if p > self.threshold]
        return Answer("labels", chosen, float(np.prod([max(p, 1 - p) for p in parts[0]])))


class SubsetAccuracy(Metric):
    """The share of rows all of whose labels are right."""

    answer_kind = "labels"

    def row(self, answer: Answer | None, target: Target, task: Task) -> tuple[float, ...]:
        """Return whether the labels are right, and 1."""
        return float(answer is not None and sorted(answer.value) == sorted(target)), 1.0

    def reduce(self, sums: Array) -> Array:
        """Return the mean."""
        return np.asarray(sums[..., 0] / sums[..., 1])


@pytest.fixture
def multi_label() -> Iterator[Task]:
    """Register both halves and a metric for the time of a test, and return a task that needs them.

    These alone are taken away again: what the test imports meanwhile stays imported, so it has to stay registered.
    """
    registries: tuple[tuple[Registry[Any], str, type], ...] = (
        (heads, "multi_label", MultiLabelHead),
        (head_kinds, "multi_label", MultiLabelKind),
        (metrics, "subset_accuracy", SubsetAccuracy),
    )
    for registry, name, entry in registries:
        registry.register(name)(entry)
    yield Task(
        name="topics",
        head="multi_label",
        columns=Columns(text="text", target="topics"),
        labels=("sport", "money"),
        metrics=("subset_accuracy",),
        max_tokens=32,
        stride=8,
    )
    for registry, name, _ in registries:
        del registry._entries[name], registry._homes[name]


def topic_rows(task: Task, count: int) -> list[Record]:
    """Return rows that name their topics in words, converted from native columns."""
    phrases = {"sport": "team won team won", "money": "shares rose shares rose"}
    telling = set(" ".join(phrases.values()).split())
    records = []
    for i in range(count):
        named = [label for label, there in zip(phrases, (i % 2, i // 2 % 2), strict=True) if there]
        filler = [word for word in make_rows(MOOD, 1, start=i)[0].text.split() if word not in telling]
        text = " ".join([f"row {i}", *filler, *(phrases[label] for label in named)])
        row = {"text": text, "topics": ",".join(named)}
        record = convert(task, 0, row, str(i), fixed=Counter())
        assert isinstance(record, Record)
        records.append(record)
    return records


@pytest.mark.e2e
def test_a_kind_of_head_that_is_defined_here_alone_is_trained_answers_and_is_saved(
    multi_label: Task, tiny_base: Loader, tmp_path: Path
) -> None:
    task, base = multi_label, tiny_base()
    problem = convert(task, 0, {"text": "a film", "topics": "sprot"}, "0", fixed=Counter())
    assert isinstance(problem, RowProblem) and problem.code == "unknown_label"
    records = topic_rows(task, 64)
    splits, _ = draw(records, {"test": 16, "train": 48}, kind=head_kind(task.head), seed=0, purpose="test")
    assert Counter(",".join(record.target) for record in splits["test"]) == {
        "": 4,
        "sport": 4,
        "money": 4,
        "sport,money": 4,
    }
    short = ExpertConfig(rank=2, alpha=8, trunk_depth=2, epochs=2)
    long = short.model_copy(update={"epochs": 40, "batch_rows": 8, "learning_rate": 1e-2, "patience": 0})
    plans = [ExpertPlan(task, long, {"threshold": 0.4}), ExpertPlan(MOOD, short)]
    rows, held = {"topics": splits["train"], "mood": ROWS["mood"]}, {"topics": splits["test"], "mood": HELD["mood"]}
    experts = fit_experts(base, plans, rows, held, options=LoopOptions())
    system = System({"tiny": base}, experts, None, router_base="tiny")
    fit_system_router(system, {**SETTINGS, "kind": "mlp"}, RouterRows(rows, held), seed=0)

    texts = [record.text for record in splits["test"]]
    predictions = system.predict(texts, tasks=["topics"] * len(texts))
    answers = [prediction.answer for prediction in predictions]
    assert score(task, answers, splits["test"])["subset_accuracy"] >= 0.75
    json_form = json.loads(json.dumps(predictions[0].to_json()))
    assert json_form["answer"] == predictions[0].answer.value and json_form["count"] == len(json_form["answer"])  # type: ignore[union-attr]
    system.save(tmp_path / "system")
    loaded = System.load(tmp_path / "system")
    assert loaded.predict(texts, tasks=["topics"] * len(texts)) == predictions
    assert loaded.experts[loaded.names.index("topics")].head.options == {"threshold": 0.4}
    with pytest.raises(
        MergeError, match=r"multi_label head, which has no classes.*allowed are classification, span, tags"
    ):
        entropy_of(loaded.experts[loaded.names.index("topics")])


def test_an_unknown_head_is_named_with_the_nearest_and_a_registered_one_is_known(multi_label: Task) -> None:
    values = multi_label.model_dump(mode="json")
    assert checked(Task, values, what="a card") == multi_label
    check_names([multi_label])
    with pytest.raises(ConfigError, match=r"'multi_lable'.*\(did you mean 'multi_label'\?\); allowed: causal_lm, "):
        checked(Task, {**values, "head": "multi_lable"}, what="a card")
    with pytest.raises(ConfigError, match="a multi_label head needs at least two different labels"):
        checked(Task, {**values, "labels": ["sport"]}, what="a card")
    with pytest.raises(ConfigError, match="'accuracy' does not judge a multi_label head; allowed: subset_accuracy"):
        check_names([multi_label.model_copy(update={"metrics": ("accuracy",)})])


def test_a_question_may_be_left_open(tiny_base: Loader) -> None:
    base = tiny_base()
    open_ask = ASK.model_copy(update={"null_threshold": 0.0})
    rows, windows, hidden, _ = windows_of(base, open_ask, count=1)
    head, strict = head_of(open_ask, base), head_of(ASK, base)
    assert list(head.target(windows[0], Record("q", "c", 0, "ask", {"texts": [], "starts": []}, "1"))) == [0, 0]  # type: ignore[arg-type]
    logits = torch.zeros(1, hidden.shape[1], 2)
    inside = windows[0].encoding.sequence_ids.index(1)
    for null, best, answered in ((1.0, 3.0, True), (4.0, 3.0, False), (3.0, 3.0, True)):
        logits[0, 0], logits[0, inside] = null / 2, best / 2
        parts = head.parts(logits, windows[:1], rows)
        answer, always = head.merge(parts, rows[0]), strict.merge(parts, rows[0])
        assert always.value and (answer == always if answered else answer.value == "")
        if not answered:
            assert answer.score == pytest.approx(1 / (1 + math.exp(best - null)))
    # over several windows the one that is least sure that there is no answer decides
    later = [(1.0, 0.5, 0, 1, 5.0), (2.0, 0.5, 0, 1, 1.5)]
    assert head.merge(later, rows[0]) == strict.merge(later, rows[0])


def test_only_heads_of_spans_leave_questions_open() -> None:
    with pytest.raises(ValueError, match=r"null_threshold is 0\.0; a classification head has none"):
        Task(**{**MOOD.model_dump(), "null_threshold": 0.0})
