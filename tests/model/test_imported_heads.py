"""Heads of task models, in from PEFT and out to PEFT: the same logits for every family and every kind of task."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel

from dynamorouter.errors import AdapterError, LibraryError
from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.base import build_head
from dynamorouter.model.heads.imported import brings_head, imported_head
from dynamorouter.model.lora.config import LoraConfig
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.lora.gates.row import RowGate
from dynamorouter.model.lora.mount import mount
from dynamorouter.model.lora.peft import load_adapter
from dynamorouter.model.lora.targets import target_layers
from dynamorouter.model.text.tokenize import Batch
from dynamorouter.system.library import Library, export_expert
from support.banks import random_change
from support.peftmodels import HEADS, KNOWN, LABELS, linear_names, open_base, peft_adapter, task_model
from support.peftmodels import write_family as write
from support.shared import made_once

Folder = Callable[[str], Path]
POOLED = {"deberta-v2": ["pooler"]}
"""Modules of a family that PEFT does not save beside the classifier by itself."""


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return lambda name: made_once(tmp_path_factory, f"family/{name}", lambda folder: write(folder, name))


def tokens(*, rows: int = 3) -> Batch:
    torch.manual_seed(5)
    ids, mask = torch.randint(10, 200, (rows, 7)), torch.ones(rows, 7, dtype=torch.int64)
    ids[1, 5:], mask[1, 5:] = 0, 0
    return Batch(ids=ids, types=None, mask=mask)


@torch.inference_mode()
def peft_logits(model: Any, batch: Batch) -> Tensor:
    out = model(input_ids=batch.ids, attention_mask=batch.mask)
    return torch.stack([out.start_logits, out.end_logits], -1) if hasattr(out, "start_logits") else out.logits


@torch.inference_mode()
def our_logits(base: Base, expert: Expert, batch: Batch) -> Tensor:
    _mounted = mount(base, [expert])
    hidden = base.forward(batch, RowGate(torch.zeros(len(batch.ids), dtype=torch.int64)))
    return expert.head.logits(hidden, batch.mask)


def assert_equal(found: Tensor, expected: Tensor, batch: Batch) -> None:
    live = batch.mask.bool()
    if found.dim() == 3:
        found, expected = found[live], expected[live]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert float(expected.std()) > 0.1  # so that a wrong head would be seen


def imported(base: Base, folder: Path, task_type: str, **options: Any) -> Expert:
    adapter, task = load_adapter(folder, base), HEADS[task_type]
    head = imported_head(task, base, adapter, **options)
    card = {"source": {"task_type": task_type}}
    return Expert(task.name, task, base.spec.name, adapter.factors, head, adapter.lora, card)


@pytest.mark.parametrize(
    ("name", "task_type"),
    [(name, task) for name in KNOWN for task in HEADS if (name, task) != ("llama", "QUESTION_ANS")],
)  # transformers loads no weight of a causal checkpoint into LlamaForQuestionAnswering
def test_a_head_is_as_in_peft_in_memory_and_out_again(
    family: Folder, tmp_path: Path, name: str, task_type: str
) -> None:
    base = open_base(family(name))
    options: dict[str, Any] = {"target_modules": linear_names(base), "fan_in_fan_out": name == "gpt2"}
    if name == "deberta-v2":
        options["target_modules"] = ["query_proj", "key_proj", "value_proj", "dense"]
    if task_type == "SEQ_CLS" and name in POOLED:
        options["modules_to_save"] = [*POOLED[name], "classifier"]
    model = peft_adapter(task_model(family(name), task_type), task_type=task_type, **options)
    model.save_pretrained(str(tmp_path / "theirs"))
    batch = tokens()
    labels = None if task_type == "QUESTION_ANS" else LABELS
    expert = imported(base, tmp_path / "theirs", task_type, labels=labels)
    expected = peft_logits(model, batch)
    assert_equal(our_logits(base, expert, batch), expected, batch)
    library = Library(tmp_path / "library")
    saved = library.add(expert, base)
    assert_equal(our_logits(base, library.load(expert.name, base), batch), expected, batch)
    torch.manual_seed(11)  # whatever is not in the folder is drawn anew
    opened = PeftModel.from_pretrained(task_model(family(name), task_type), saved).eval()
    assert_equal(peft_logits(opened, batch), expected, batch)
    again = imported(base, saved, task_type)  # its card names the outputs
    assert_equal(our_logits(base, again, batch), expected, batch)


@pytest.mark.parametrize("saved_too", [False, True], ids=["base's pooler", "pooler in modules_to_save"])
def test_factors_of_a_pooler_are_part_of_the_head(family: Folder, tmp_path: Path, saved_too: bool) -> None:
    base = open_base(family("bert"))
    options: dict[str, Any] = {"target_modules": "all-linear"}
    if saved_too:
        options = {"target_modules": ["query", "value"], "modules_to_save": ["pooler", "classifier"]}
    model = peft_adapter(task_model(family("bert"), "SEQ_CLS"), task_type="SEQ_CLS", std=0.5, **options)
    model.save_pretrained(str(tmp_path))
    assert ("pooler.dense" in load_adapter(tmp_path, base).head_factors) is not saved_too
    expert = imported(base, tmp_path, "SEQ_CLS", labels=LABELS)
    assert_equal(our_logits(base, expert, tokens()), peft_logits(model, tokens()), tokens())
    assert "pooler.dense" not in mount(base, [expert]).banks
    imported(base, tmp_path, "SEQ_CLS", labels=LABELS)  # another can be made while the first is mounted


@pytest.mark.parametrize("target", ["pos_key_proj", "key_proj"])
def test_layers_that_run_on_what_all_rows_share_are_refused(family: Folder, tmp_path: Path, target: str) -> None:
    folder = Path(shutil.copytree(family("deberta-v2"), tmp_path / "base"))
    add_values(folder, {"config.json": {"share_att_key": target == "key_proj"}})
    model = peft_adapter(task_model(folder, "TOKEN_CLS"), target_modules=[target, "value_proj"])
    model.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(AdapterError, match=r"deberta-v2\) also runs on what all rows share"):
        load_adapter(tmp_path / "adapter", open_base(folder))


def test_a_layer_whose_weights_nobody_kept_is_refused(family: Folder, tmp_path: Path) -> None:
    base = open_base(family("deberta-v2"))
    model = peft_adapter(
        task_model(family("deberta-v2"), "SEQ_CLS"), task_type="SEQ_CLS", target_modules=["value_proj"]
    )
    model.save_pretrained(str(tmp_path / "pooler"))
    with pytest.raises(AdapterError, match=r"stands on 'pooler.dense'.*drawn at random.*modules_to_save"):
        imported(base, tmp_path / "pooler", "SEQ_CLS", labels=LABELS)
    base = open_base(family("bert"))
    model = peft_adapter(task_model(family("bert"), "TOKEN_CLS"), target_modules=["query", "classifier"])
    model.save_pretrained(str(tmp_path / "classifier"))
    with pytest.raises(AdapterError, match=r"changes 'classifier' of its head.*modules_to_save"):
        imported(base, tmp_path / "classifier", "TOKEN_CLS", labels=LABELS)


def test_a_pooler_without_a_head_is_said_to_be_idle(family: Folder, tmp_path: Path) -> None:
    base = open_base(family("bert"))
    model = peft_adapter(AutoModel.from_pretrained(family("bert")), target_modules="all-linear")
    model.save_pretrained(str(tmp_path))
    adapter = load_adapter(tmp_path, base)
    assert not brings_head(adapter) and "pooler.dense" in adapter.head_factors
    assert any("pooler.dense: changed by the adapter, but read by no head" in note for note in adapter.notes)


def test_a_head_that_was_lost_is_said(family: Folder, tmp_path: Path) -> None:
    model = peft_adapter(task_model(family("bert"), "TOKEN_CLS"), task_type="TOKEN_CLS", target_modules=["query"])
    model.save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "classifier" not in k}, path, {"format": "pt"})
    adapter = load_adapter(tmp_path, open_base(family("bert")))
    assert not brings_head(adapter) and "modules_to_save names classifier, score, but" in adapter.notes[0]


def test_a_broken_head_of_an_expert_is_refused(family: Folder, tmp_path: Path) -> None:
    base, task = open_base(family("bert")), HEADS["TOKEN_CLS"]
    change = random_change(base, "x", {"encoder.layer.1.attention.self.query": 2})
    expert = Expert("x", task, "tiny", change.factors, build_head(task, base.width), LoraConfig(rank=2))
    library = Library(tmp_path)
    path = library.add(expert, base) / "head.safetensors"
    save_file({key: value * float("nan") for key, value in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(LibraryError, match=r"holds NaN or Inf in out"):
        library.load("x", base)
    with pytest.raises(AdapterError, match=r"holds NaN in 'out"):
        imported(base, tmp_path / "x", "TOKEN_CLS")


def test_a_head_of_other_layers_is_refused(family: Folder, tmp_path: Path) -> None:
    """ModernBERT has a dense layer and a norm between body and classifier, also for tags."""
    write(tmp_path / "base", "modernbert")
    model = peft_adapter(task_model(tmp_path / "base", "TOKEN_CLS"), task_type="TOKEN_CLS", target_modules=["Wqkv"])
    model.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(AdapterError, match=r"ModernBertForTokenClassification has a head of other layers \(head.dense"):
        imported(open_base(tmp_path / "base"), tmp_path / "adapter", "TOKEN_CLS", labels=LABELS)


def test_a_head_is_tried_against_the_task_model(family: Folder, tmp_path: Path) -> None:
    """The same layers with another activation, as a config can say, compute something else."""
    folder = Path(shutil.copytree(family("deberta-v2"), tmp_path / "base"))
    add_values(folder, {"config.json": {"pooler_hidden_act": "relu"}})
    options: dict[str, Any] = {"target_modules": ["dense"], "modules_to_save": ["pooler", "classifier"]}
    peft_adapter(task_model(folder, "SEQ_CLS"), task_type="SEQ_CLS", **options).save_pretrained(
        str(tmp_path / "adapter")
    )
    with pytest.raises(AdapterError, match="does not compute what DebertaV2ForSequenceClassification does"):
        imported(open_base(folder), tmp_path / "adapter", "SEQ_CLS", labels=LABELS)


def test_a_pooler_that_the_checkpoint_lacks_is_not_made_up(family: Folder, tmp_path: Path) -> None:
    headless = tmp_path / "base"
    headless.mkdir()
    for path in family("bert").iterdir():
        (headless / path.name).write_bytes(path.read_bytes())
    weights = load_file(headless / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "pooler" not in k}, headless / "model.safetensors", {"format": "pt"})
    model = peft_adapter(task_model(headless, "SEQ_CLS"), task_type="SEQ_CLS", target_modules=["query"])
    model.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(AdapterError, match=r"'pooler.dense', whose weights are neither in the adapter nor in base"):
        imported(open_base(headless), tmp_path / "adapter", "SEQ_CLS", labels=LABELS)


def test_a_head_that_a_task_model_computes_otherwise_is_refused(family: Folder, tmp_path: Path) -> None:
    """A cls head over BERT's hidden states has no task model: it is written for AutoModel, and named when it comes."""
    base = open_base(family("bert"))
    task = HEADS["SEQ_CLS"]
    model = peft_adapter(task_model(family("bert"), "SEQ_CLS"), task_type="SEQ_CLS", target_modules=["query"])
    model.save_pretrained(str(tmp_path / "theirs"))
    adapter = load_adapter(tmp_path / "theirs", base)
    mean = build_head(task, base.width, {"pooling": "mean"})
    torch.nn.init.normal_(mean.get_parameter("out.weight"))
    expert = Expert(
        "topic", task, "tiny", adapter.factors, mean.eval(), adapter.lora, {"source": {"task_type": "SEQ_CLS"}}
    )
    saved = Library(tmp_path / "library").add(expert, base)
    assert json.loads((saved / "adapter_config.json").read_text())["task_type"] == "FEATURE_EXTRACTION"
    batch = tokens()
    again = imported(base, saved, "SEQ_CLS")  # its own head lies beside it
    assert_equal(our_logits(base, again, batch), our_logits(base, expert, batch), batch)
    with pytest.raises(AdapterError, match="has a classification head, but task 'tags' has a tags head"):
        imported_head(HEADS["TOKEN_CLS"], base, load_adapter(saved, base))


@pytest.mark.parametrize("task_type", ["TOKEN_CLS", "QUESTION_ANS"])
def test_an_expert_that_was_trained_here_goes_out_as_a_task_model(
    family: Folder, tmp_path: Path, task_type: str
) -> None:
    base, task, batch = open_base(family("roberta")), HEADS[task_type], tokens()
    head = build_head(task, base.width)
    torch.nn.init.normal_(head.get_parameter("out.weight"))
    layers = dict.fromkeys(target_layers(base, "attention", trunk_depth=1), 3)
    change = random_change(base, "x", layers, scaling=1.5)
    expert = Expert("x", task, "tiny", change.factors, head.eval(), LoraConfig(rank=3, alpha=4.5, trunk_depth=1))
    export_expert(expert, base, tmp_path / "out")
    opened = PeftModel.from_pretrained(task_model(family("roberta"), task_type), tmp_path / "out").eval()
    assert_equal(peft_logits(opened, batch), our_logits(base, expert, batch), batch)
    again = imported(base, tmp_path / "out", task_type)  # config.json beside it names the labels
    assert_equal(our_logits(base, again, batch), our_logits(base, expert, batch), batch)
    assert again.lora.trunk_depth == 1 and load_adapter(tmp_path / "out", base).notes == ()
    with pytest.raises(LibraryError, match="something at"):
        export_expert(expert, base, tmp_path / "out")


def test_a_head_that_no_task_model_computes_does_not_go_out_as_one(family: Folder, tmp_path: Path) -> None:
    base, task = open_base(family("bert")), HEADS["SEQ_CLS"]
    change = random_change(base, "x", {"encoder.layer.1.attention.self.query": 2})
    for options in ({"pooling": "mean"}, {"pooling": "cls"}, {"pooling": "cls", "dense": True, "activation": "relu"}):
        expert = Expert("x", task, "tiny", change.factors, build_head(task, base.width, options), LoraConfig(rank=2))
        with pytest.raises(LibraryError, match=f"no task model of transformers.*pooling={options['pooling']}"):
            export_expert(expert, base, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


ORDERS: dict[str, tuple[dict[str, Any], list[str] | None]] = {
    "config.json beside it": ({"config.json": {"id2label": {"0": "i_x", "1": "O", "2": "b-x"}}}, None),
    "label2id alone": ({"config.json": {"label2id": {"I-X": 0, "O": 1, "B-X": 2}}}, None),
    "adapter_config.json": ({"adapter_config.json": {"id2label": {"0": "I-X", "1": "O", "2": "B-X"}}}, None),
    "labels": ({}, ["I-X", "O", "B-X"]),
    "labels before the config": (
        {"config.json": {"id2label": {"0": "O", "1": "B-X", "2": "I-X"}}},
        ["I-X", "O", "B-X"],
    ),
}


def add_values(folder: Path, files: dict[str, Any]) -> None:
    for name, values in files.items():
        path = folder / name
        path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))


@pytest.mark.parametrize("task_type", ["SEQ_CLS", "TOKEN_CLS"])
@pytest.mark.parametrize("case", ORDERS)
def test_outputs_are_put_in_the_order_of_the_tasks_labels(
    family: Folder, tmp_path: Path, case: str, task_type: str
) -> None:
    base = open_base(family("bert"))
    model = peft_adapter(task_model(family("bert"), task_type), task_type=task_type, target_modules=["query"])
    model.save_pretrained(str(tmp_path))
    files, labels = ORDERS[case]
    add_values(tmp_path, files)
    expert = imported(base, tmp_path, task_type, labels=labels)
    expected = peft_logits(model, tokens())[..., [1, 2, 0]]
    assert_equal(our_logits(base, expert, tokens()), expected, tokens())


UNNAMED: dict[str, tuple[dict[str, Any], list[str] | None, str]] = {
    "nothing": ({}, None, r"nothing says which label each is.*--labels O,B-X,I-X"),
    "default names": (
        {"config.json": {"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}},
        None,
        "--labels",
    ),
    "other labels": (
        {"config.json": {"id2label": {"0": "O", "1": "B-Y", "2": "I-Y"}}},
        None,
        r"labels O, B-Y, I-Y, but",
    ),
    "labels of another task": ({}, ["a", "b", "c"], r"labels a, b, c, but task 'topic' has O, B-X, I-X"),
    "too few labels": ({}, ["O", "B-X"], r"has 2 labels \(O, B-X\), but the adapter's head has 3 outputs"),
    "names at odds": (
        {"config.json": {"id2label": {"0": "O", "1": "B-X", "2": "I-X"}, "label2id": {"O": 1, "B-X": 0, "I-X": 2}}},
        None,
        "nothing says which",
    ),
    "numbers that are none": ({"config.json": {"label2id": {"O": [0], "B-X": None, "I-X": 2}}}, None, "nothing says"),
    "a card that is damaged": ({"card.json": {"task": {"labels": 3}}}, None, "nothing says which"),
    "several labels at once": (
        {"config.json": {"problem_type": "multi_label_classification"}},
        ["O", "B-X", "I-X"],
        "problem_type='multi_label_classification'",
    ),
    "a label twice": ({}, ["O", "O", "B-X"], r"labels O, O, B-X, but task"),
}


@pytest.mark.parametrize("case", UNNAMED)
def test_labels_are_asked_for_where_nothing_names_them(family: Folder, tmp_path: Path, case: str) -> None:
    model = peft_adapter(task_model(family("bert"), "SEQ_CLS"), task_type="SEQ_CLS", target_modules=["query"])
    model.save_pretrained(str(tmp_path))
    files, labels, message = UNNAMED[case]
    add_values(tmp_path, files)
    with pytest.raises(AdapterError, match=message):
        imported(open_base(family("bert")), tmp_path, "SEQ_CLS", labels=labels)


def test_the_config_of_a_base_that_was_a_classifier_names_outputs(family: Folder, tmp_path: Path) -> None:
    base_folder = tmp_path / "base"
    base_folder.mkdir()
    for path in family("bert").iterdir():
        (base_folder / path.name).write_bytes(path.read_bytes())
    add_values(base_folder, {"config.json": {"id2label": {"0": "I-X", "1": "O", "2": "B-X"}}})
    model = peft_adapter(task_model(base_folder, "SEQ_CLS"), task_type="SEQ_CLS", target_modules=["query"])
    model.save_pretrained(str(tmp_path / "adapter"))
    base = open_base(family("bert"))
    expert = imported(base, tmp_path / "adapter", "SEQ_CLS")
    assert_equal(our_logits(base, expert, tokens()), peft_logits(model, tokens())[:, [1, 2, 0]], tokens())


def test_a_question_answerer_has_no_labels(family: Folder, tmp_path: Path) -> None:
    model = peft_adapter(task_model(family("bert"), "QUESTION_ANS"), task_type="QUESTION_ANS", target_modules=["query"])
    model.save_pretrained(str(tmp_path))
    with pytest.raises(AdapterError, match="a span head has none"):
        imported(open_base(family("bert")), tmp_path, "QUESTION_ANS", labels=["start", "end"])
