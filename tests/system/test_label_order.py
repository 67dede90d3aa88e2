"""The labels of an imported head: named by its folder, the user or the rows, and refused where the rows say no."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dynamorouter.data.native import read_split
from dynamorouter.errors import AdapterError
from dynamorouter.system.merge import verify
from dynamorouter.system.system import System
from dynamorouter.tasks.task import Columns, Task
from support.builders import WORDS
from support.tinyrun import call, refused

LABELS = ["bad", "fair", "good"]
MEANT = {"bad": "good", "fair": "bad", "good": "fair"}
RATING = Task(
    name="rating",
    head="classification",
    columns=Columns(text="text", target="label"),
    labels=tuple(LABELS),
    max_tokens=32,
    stride=8,
)


@pytest.fixture(scope="module")
def adapter(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    """Return a classifier's adapter, and rows whose labels are what it answers in the order of the task."""
    base, folder = home / "conf" / "models" / "bert", tmp_path_factory.mktemp("rating") / "adapter"
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    config = LoraConfig(task_type="SEQ_CLS", r=3, target_modules=["query", "value"], init_lora_weights=False)
    wrapped: Any = get_peft_model(model, config).eval()
    head = wrapped.base_model.model.classifier.modules_to_save["default"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = [" ".join(WORDS[(i * 7 + j * (3 + i % 5)) % len(WORDS)] for j in range(3 + i % 6)) for i in range(90)]
    with torch.no_grad():
        head.weight.normal_()
        logits = torch.cat([wrapped(**tokenizer(text, return_tensors="pt")).logits for text in texts])
        head.bias -= logits.mean(dim=0)  # so that each label is answered
        chosen = (logits - logits.mean(dim=0)).argmax(dim=1).tolist()
    assert min(chosen.count(label) for label in range(3)) > 10
    wrapped.save_pretrained(str(folder))
    return folder, [{"text": text, "label": LABELS[label]} for text, label in zip(texts, chosen, strict=True)]


@pytest.fixture
def add(finished: Path, adapter: tuple[Path, list[dict[str, str]]]) -> Callable[..., tuple[str, ...]]:
    """Return a function that imports the adapter and returns what is said of it; the score is 1 where it is right."""
    folder, rows = adapter

    def add_to_system(rename: dict[str, str], *, right: bool, **options: Any) -> tuple[str, ...]:
        system = System.load(finished / "system")
        named = [{**row, "label": rename.get(row["label"], row["label"])} for row in rows]
        added = system.add_expert("rating", task=RATING, rows=named, adapter=folder, **options)
        assert added.score == pytest.approx(1.0) if right else added.score is not None and added.score < 0.5
        return added.notes

    return add_to_system


def test_rows_confirm_the_tasks_order_or_ask_for_labels(add: Callable[..., tuple[str, ...]]) -> None:
    (note,) = add({}, right=True)
    assert "taken in the task's order, which 90 rows confirm" in note
    with pytest.raises(AdapterError, match=r"(?s)nothing says which label each is.*--labels.*'bad' means 'good'"):
        add(MEANT, right=False)


def test_an_imported_classifier_is_verified_and_exported(
    finished: Path, adapter: tuple[Path, list[dict[str, str]]], tmp_path: Path
) -> None:
    system = System.load(finished / "system")
    system.add_expert("rating", task=RATING, rows=adapter[1], adapter=adapter[0])
    system.save(tmp_path / "system")
    (row,) = verify(tmp_path / "system", "rating")
    assert row["ok"] and row["change"] > 0.01
    assert call("expert", "export", tmp_path / "system", "rating", tmp_path / "out").exit_code == 0
    theirs, ours = (load_file(folder / "adapter_model.safetensors") for folder in (adapter[0], tmp_path / "out"))
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"] == dict(
        zip("012", LABELS, strict=True)
    )
    refused(call("expert", "export", tmp_path / "system", "ratng", tmp_path / "new"), "no expert 'ratng'")


@pytest.mark.parametrize("name", ["mood", "names", "ask"])
def test_an_experts_own_folder_keeps_its_head(home: Path, finished: Path, name: str) -> None:
    system = System.load(finished / "system")
    before = system.experts[system.index(name)]
    rows = [row for row in read_split(before.task, home / "rows", "train")][:40]
    added = system.add_expert("again", task=before.task, rows=rows, adapter=finished / "system" / "experts" / name)
    after = system.experts[system.index("again")]
    assert added.train_rows == 0 and added.matched_layers == len(before.factors)
    assert after.head.options == before.head.options and after.head.labels == before.head.labels
    for key, value in before.head.state_dict().items():
        assert torch.equal(after.head.state_dict()[key], value), key
    texts, pairs = [row.text for row in rows[:5]], [row.pair for row in rows[:5]]
    for one, other in zip(*(system.predict(texts, pairs, [called] * 5) for called in (name, "again")), strict=True):
        assert one.answer == other.answer


def test_labels_of_the_user_are_taken_at_their_word(add: Callable[..., tuple[str, ...]]) -> None:
    assert add(MEANT, right=True, labels=[MEANT[label] for label in LABELS]) == ()
    (note,) = add(MEANT, right=False, labels=LABELS)
    assert note.startswith("check the order of the labels") and "'bad' means 'good'" in note


def test_names_in_the_folder_are_held_against_the_rows(
    add: Callable[..., tuple[str, ...]], adapter: tuple[Path, list[dict[str, str]]]
) -> None:
    config = adapter[0] / "config.json"
    try:
        config.write_text(json.dumps({"id2label": {str(i): MEANT[label].upper() for i, label in enumerate(LABELS)}}))
        assert add(MEANT, right=True) == ()
        with pytest.raises(AdapterError, match=r"another order than its folder says.*'good' means 'bad'"):
            add({}, right=False)
    finally:
        config.unlink()
