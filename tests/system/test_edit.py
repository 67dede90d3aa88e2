"""Adding adapters that PEFT trained, removing experts, scoring files: answers equal PEFT's, refusals change nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from dynamorouter.data.native import has_split, read_split
from dynamorouter.errors import AdapterError, DataError, DynamoRouterError, LibraryError, RouterError
from dynamorouter.system import edit
from dynamorouter.system.system import System
from dynamorouter.tasks.task import Columns, Task
from dynamorouter.utils.jsonl import SkipCount
from support.tinyrun import call, contents, refused, write_lines

TASK = "head: classification\ncolumns: {text: text, target: label}\nlabels: [a, b, c]\nmax_tokens: 32\nstride: 8\n"
TOPIC = Task(
    name="topic",
    head="classification",
    columns=Columns(text="text", target="label"),
    labels=("a", "b", "c"),
    max_tokens=32,
    stride=8,
    sources={"local": {}},
)
KINDS = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
    "FEATURE_EXTRACTION": AutoModel,
}
TEXTS = ["the film was dull", "shares rose", "anna said in paris music won", "who won the match"]


def peft_model(base: Path, kind: str, *, labels: int = 3, **options: Any) -> Any:
    """Return a PEFT model with random factors and head over a base."""
    more = {} if kind in ("FEATURE_EXTRACTION", "QUESTION_ANS") else {"num_labels": labels}
    torch.manual_seed(7)
    model = KINDS[kind].from_pretrained(base, **more)
    targets = options.pop("target_modules", ["query", "value"])
    wanted = LoraConfig(task_type=kind, r=3, lora_alpha=6, target_modules=targets, **options)
    found = get_peft_model(model, wanted)
    with torch.no_grad():
        for name, value in found.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                value.normal_(0, 0.4)
    return found.eval()


@pytest.fixture
def system(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of a finished run's system."""
    return Path(shutil.copytree(finished / "system", tmp_path / "system"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with rows of the tasks that are added, and of no other."""
    root = tmp_path_factory.mktemp("more")
    words = ("team match won", "bank shares rose", "music scene film")
    topic = [{"text": f"{words[i % 3]} {'the ' * (i // 3)}", "label": "abc"[i % 3]} for i in range(45)]
    write_lines(root / "topic" / "train.jsonl", topic)
    pos = [{"tokens": ["when", *["what"] * i, "time"], "tags": ["O", *["O"] * i, "B-X"]} for i in range(40)]
    write_lines(root / "pos" / "train.jsonl", pos)
    context = "minister said acme fell"
    asked = {"text": ["acme"], "answer_start": [14]}
    ask = [{"question": f"who fell {'in ' * i}?", "context": context, "answers": asked} for i in range(40)]
    write_lines(root / "quest" / "train.jsonl", ask)
    return root


def add_line(system: Path, folder: Path, rows: Path) -> tuple[str | Path, ...]:
    """Write the task's file beside an adapter, and return the command that adds it."""
    (folder / "topic.yaml").write_text(TASK)
    return ("expert", "add", system, folder / "adapter", "--task", folder / "topic.yaml", "--data", rows)


def test_a_classifier_answers_as_with_peft(home: Path, system: Path, rows: Path, tmp_path: Path) -> None:
    base = home / "conf" / "models" / "bert"
    model = peft_model(base, "SEQ_CLS")
    model.save_pretrained(tmp_path / "adapter")
    before = System.load(system)
    said = call(*add_line(system, tmp_path, rows), "--name", "mine", "--labels", "a, b, c")
    assert said.exit_code == 0, said.output
    after = System.load(system)
    assert after.names == [*before.names, "mine"] and after.classes == after.names
    tokenizer = AutoTokenizer.from_pretrained(base)
    for text, found in zip(TEXTS, after.predict(TEXTS, tasks=["mine"] * 4), strict=True):
        with torch.no_grad():
            chances = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
        assert found.answer is not None
        assert found.answer.value == "abc"[int(chances.argmax())]
        assert found.answer.score == pytest.approx(float(chances.max()), abs=1e-5)
    for one, two in zip(
        before.predict(TEXTS, tasks=["mood"] * 4), after.predict(TEXTS, tasks=["mood"] * 4), strict=True
    ):
        assert one.answer == two.answer
    routed = after.predict(["bank shares rose", "team match won the the"])
    assert [found.expert for found in routed] == ["mine", "mine"] and len(routed[0].route) == 4
    skill = after.library.skill("mine") if after.library else None
    assert skill is not None and skill.states[0].shape[0] > 10
    refused(
        call(
            "expert",
            "add",
            system,
            tmp_path / "adapter",
            "--task",
            tmp_path / "topic.yaml",
            "--data",
            rows,
            "--name",
            "mine",
        ),
        "already",
    )


def test_tags_and_spans_answer_as_with_peft(home: Path, system: Path, rows: Path, tmp_path: Path) -> None:
    base = home / "conf" / "models" / "bert"
    tokenizer = AutoTokenizer.from_pretrained(base)
    tags = Task(
        name="pos",
        head="tags",
        columns=Columns(text="tokens", target="tags"),
        labels=("O", "B-X", "I-X"),
        metrics=("entity_f1",),
        max_tokens=32,
        stride=8,
    )
    model = peft_model(base, "TOKEN_CLS")
    model.save_pretrained(tmp_path / "tags")
    edit.add_expert(system, tmp_path / "tags", name="pos", task=tags, data=rows, labels=tags.labels)
    text = "the film was dull"
    with torch.no_grad():
        best = model(**tokenizer(text, return_tensors="pt")).logits[0].argmax(-1).tolist()
    (found,) = System.load(system).predict([text], tasks=["pos"])
    assert found.answer is not None and found.answer.value == [tags.labels[i] for i in best[1:-1]]
    asks = Task(
        name="quest",
        head="span",
        columns=Columns(text="question", target="answers", pair="context"),
        metrics=("squad_f1",),
        max_tokens=32,
        stride=8,
    )
    model = peft_model(base, "QUESTION_ANS")
    model.save_pretrained(tmp_path / "spans")
    edit.add_expert(system, tmp_path / "spans", name="quest", task=asks, data=rows)
    question, context = "who fell ?", "minister said acme fell in paris"
    encoded = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
    offsets, sides = encoded.pop("offset_mapping")[0].tolist(), encoded.sequence_ids(0)
    after = sides.index(1)
    kinds = torch.tensor([[int(i >= after) for i in range(len(sides))]])
    with torch.no_grad():
        out = model(**encoded, token_type_ids=kinds)
    places = [i for i, side in enumerate(sides) if side == 1]
    first, last = max(
        ((i, j) for i in places for j in places if i <= j < i + 30),
        key=lambda at: float(out.start_logits[0, at[0]] + out.end_logits[0, at[1]]),
    )
    (found,) = System.load(system).predict([question], [context], ["quest"])
    assert found.answer is not None and found.answer.value == context[offsets[first][0] : offsets[last][1]]


def test_an_adapter_without_head_gets_one_trained(home: Path, system: Path, rows: Path, tmp_path: Path) -> None:
    model = peft_model(home / "conf" / "models" / "bert", "FEATURE_EXTRACTION", use_rslora=True)
    model.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    edit.add_expert(system, tmp_path / "adapter", name="topic", task=TOPIC, data=rows)
    loaded = System.load(system)
    (expert,) = [expert for expert in loaded.experts if expert.name == "topic"]
    key = "base_model.model.encoder.layer.2.attention.self.query.lora_A.weight"
    assert torch.equal(expert.factors["encoder.layer.2.attention.self.query"].a.cpu(), saved[key])
    assert float(expert.head.state_dict()["out.weight"].abs().max()) > 0
    assert expert.head.options["pooling"] == "mean"  # as the system's other classifiers
    assert expert.card["training"]["steps"] > 0
    assert loaded.predict(["bank shares rose"], tasks=["topic"])[0].answer is not None


def broken(change: Callable[[Path], None]) -> Callable[[Path, Path], Path]:
    def make(base: Path, folder: Path) -> Path:
        peft_model(base, "SEQ_CLS").save_pretrained(folder)
        change(folder)
        return folder

    return make


def halve(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def stray(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.bert.encoder.layer.0.odd": torch.zeros(2)}, path)


def biased(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bias": "all"}))


def saved(kind: str = "SEQ_CLS", **options: Any) -> Callable[[Path, Path], Path]:
    def make(base: Path, folder: Path) -> Path:
        peft_model(base, kind, **options).save_pretrained(folder)
        return folder

    return make


REFUSED: dict[str, tuple[Callable[[Path, Path], Path], str, type[DynamoRouterError]]] = {
    "DoRA": (saved(use_dora=True), "use_dora=True", AdapterError),
    "label count": (saved(labels=2), "labels a, b, c", AdapterError),
    "another head": (saved("TOKEN_CLS", labels=4), "does not fit task 'topic'", AdapterError),
    "unnamed outputs": (saved(), "--labels a,b,c", AdapterError),
    "truncated": (broken(halve), "truncated or corrupt", LibraryError),
    "stray key": (broken(stray), "odd", AdapterError),
    "biases": (broken(biased), "bias='all'", AdapterError),
    "no adapter": (lambda base, folder: folder, "no adapter_config.json", AdapterError),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_changes_nothing(home: Path, system: Path, rows: Path, tmp_path: Path, case: str) -> None:
    make, said, kind = REFUSED[case]
    folder = make(home / "conf" / "models" / "bert", tmp_path / "adapter")
    before = contents(system)
    with pytest.raises(kind, match=said):
        edit.add_expert(system, folder, name="topic", task=TOPIC, data=rows)
    assert contents(system) == before
    assert sorted(path.name for path in system.parent.iterdir() if path.name[0] == ".") == []


def test_names_rows_and_other_bases_are_refused(home: Path, system: Path, rows: Path, tmp_path: Path) -> None:
    models, adapter = home / "conf" / "models", tmp_path / "adapter"
    peft_model(models / "bert", "SEQ_CLS").save_pretrained(adapter)
    before = contents(system)

    def add(message: str, error: type[DynamoRouterError], **changes: Any) -> None:
        given = {"folder": adapter, "name": "topic", "task": TOPIC, "data": rows, **changes}
        with pytest.raises(error, match=message):
            edit.add_expert(system, given.pop("folder"), **given)
        assert contents(system) == before

    for name in ("../x", "a/b", ".x", "", "x" * 101):
        add("cannot be used as a file name", LibraryError, name=name)
    add("an expert 'mood' already", LibraryError, name="mood")
    add("no topic/train.jsonl", DataError, data=tmp_path)
    peft_model(models / "roberta", "SEQ_CLS", target_modules=["dense"]).save_pretrained(tmp_path / "roberta")
    wide = AutoModel.from_config(
        AutoModel.from_pretrained(models / "bert").config.__class__(
            hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=99
        )
    )
    wide.save_pretrained(tmp_path / "wide")
    peft_model(tmp_path / "wide", "SEQ_CLS").save_pretrained(tmp_path / "other")
    add("trained on another base", AdapterError, folder=tmp_path / "other")
    refused(call("expert", "add", system, adapter, "--task", "topci", "--data", rows), "unknown task 'topci'")
    assert contents(system) == before


def test_a_failure_while_the_system_is_changed_leaves_it_whole(
    home: Path, system: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft_model(home / "conf" / "models" / "bert", "SEQ_CLS").save_pretrained(tmp_path / "adapter")
    before = contents(system)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device", "router.json")

    monkeypatch.setattr(System, "save_router", full)
    line = (*add_line(system, tmp_path, rows), "--labels", "a,b,c")
    refused(call(*line), "No space left on device")
    refused(call("expert", "remove", system, "mood"), "No space left on device")
    assert contents(system) == before
    assert [path.name for path in system.parent.iterdir() if path.name.startswith(".")] == []


def test_a_replacement_that_was_killed_half_way_is_undone(system: Path) -> None:
    before = contents(system)
    system.rename(system.with_name(".system.77.old"))
    assert System.load(system).names == ["mood", "names", "ask"]
    assert contents(system) == before


def test_remove_and_list(system: Path) -> None:
    listed = json.loads(call("expert", "list", system, "--json").stdout)
    assert [row["name"] for row in listed] == ["mood", "names", "ask"]
    assert all(row["routed"] and row["parameters"] > 0 and row["bytes"] > 0 for row in listed)
    assert "mood" in call("expert", "list", system).stdout
    assert call("expert", "remove", system, "names").exit_code == 0
    assert [row["name"] for row in json.loads(call("expert", "list", system, "--json").stdout)] == ["mood", "ask"]
    assert not (system / "experts" / "names").exists()
    (found,) = System.load(system).predict(["anna in paris"])
    assert set(found.route) == {"mood", "ask"} and sum(found.route.values()) == pytest.approx(1)
    refused(call("expert", "remove", system, "../ask"), "no expert '../ask'")
    assert call("expert", "remove", system, "mood").exit_code == 0
    refused(call("expert", "remove", system, "ask"), "only expert")


def test_an_expert_can_be_removed_from_the_folder_one_stands_in(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(system)
    assert call("expert", "remove", ".", "names").exit_code == 0
    assert System.load(system).names == ["mood", "ask"]


def test_score_takes_the_tasks_that_are_there(finished: Path, home: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(home / "rows" / "mood", data / "mood")
    shutil.copytree(home / "rows" / "ask", data / "ask")
    write_lines(data / "xsum" / "test.jsonl", [{"document": "a", "summary": "b"}])
    write_lines(data / "names" / "train.jsonl", [{"tokens": ["a"], "tags": ["O"]}])  # the split is not there
    out = tmp_path / "deep" / "scores.json"
    said = call("score", finished / "system", "--data", data, "--split", "test", "--out", out, "--limit", "5")
    assert said.exit_code == 0 and "mood" in said.stdout and "routed / oracle" in said.stdout
    scores = json.loads(out.read_text())
    assert {name: row["n"] for name, row in scores["tasks"].items()} == {"mood": 5, "ask": 5}
    assert scores["not_scored"] == ["names"] and scores["skipped"] == 0
    assert scores["router"]["tasks"] == ["mood", "names", "ask"]
    report = json.loads((finished / "report.json").read_text())
    assert set(scores) >= {"tasks", "router", "normalised", "cost", "versions", "seed", "config_hash"}
    assert scores["config_hash"] == report["config_hash"]


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "broken": ('{"text": "cut', "line 3: not valid JSON"),
    "unknown label": (
        {"text": "the film", "label": "so so"},
        "row 3: 1 of 4 rows have a label that is none of the task's: 'so so' in 1 rows; allowed: bad, good",
    ),
    "missing column": ({"txt": "the film", "label": "bad"}, "row 3: column text missing"),
    "empty": ({"text": "  ", "label": "bad"}, "row 3: text is empty"),
    "long": ({"text": "a" * 100_000, "label": "bad"}, "row 3: text has 100000 characters; at most 50000"),
    "not UTF-8": (b'{"text": "\xff", "label": "bad"}', "line 3: byte 10 (0xff) is not valid UTF-8"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_or_counted(tmp_path: Path, case: str) -> None:
    bad, said = BAD_ROWS[case]
    good = {"text": "the film was dull", "label": "bad"}
    task = Task(
        name="mood",
        head="classification",
        columns=Columns(text="text", target="label"),
        labels=("bad", "good"),
        sources={"local": {}},
    )
    write_lines(tmp_path / "mood" / "test.jsonl", [good, good, bad, good])
    with pytest.raises(DataError) as caught:
        read_split(task, tmp_path, "test")
    assert said in str(caught.value) and "--skip-bad" in str(caught.value)
    skipped = SkipCount()
    assert len(read_split(task, tmp_path, "test", skip_bad=skipped)) == 3
    assert skipped.count == 1


def test_score_refuses_what_it_cannot_use(finished: Path, tmp_path: Path) -> None:
    good = {"text": "the film was dull", "label": "bad"}
    write_lines(tmp_path / "data" / "mood" / "test.jsonl", [good, {"text": "x", "label": "odd"}])
    write_lines(tmp_path / "none" / "xsum" / "test.jsonl", [good])
    out = tmp_path / "scores.json"
    line: list[str | Path] = ["score", finished / "system", "--out", out, "--data"]
    refused(call(*line, tmp_path / "data", "--split", "test"), "row 2", "'odd'")
    refused(call(*line, tmp_path / "none", "--split", "test"), "none of the system's tasks", "xsum")
    refused(call(*line, tmp_path / "nowhere", "--split", "test"), "no such folder")
    refused(call(*line, tmp_path / "data", "--split", "../test"), "file name")
    refused(call(*line[:2], "--out", tmp_path, "--data", tmp_path / "data"), "is a folder")
    assert not out.exists()
    said = call(*line, tmp_path / "data", "--split", "test", "--skip-bad")
    assert said.exit_code == 0 and json.loads(out.read_text())["skipped"] == 1


def test_score_reads_files_as_the_task_says(tmp_path: Path) -> None:
    options = {"rename": {"review": "text"}, "label_names": ["bad", "good"], "folder": "films"}
    task = Task(
        name="mood",
        head="classification",
        columns=Columns(text="text", target="label"),
        labels=("bad", "good"),
        sources={"local": options},
    )
    write_lines(tmp_path / "films" / "dev.jsonl", [{"review": "the film", "label": 1}])
    assert has_split(tmp_path, task, "validation") and not has_split(tmp_path, task, "test")
    assert [row.target for row in read_split(task, tmp_path, "validation")] == ["good"]


def test_a_router_that_kept_nothing_needs_everybodys_rows(home: Path, system: Path, rows: Path, tmp_path: Path) -> None:
    peft_model(home / "conf" / "models" / "bert", "SEQ_CLS").save_pretrained(tmp_path / "adapter")
    for path in system.rglob("skill.safetensors"):
        path.unlink()
    before = contents(system)
    with pytest.raises(RouterError, match="expert 'mood' has no rows"):
        edit.add_expert(system, tmp_path / "adapter", name="topic", task=TOPIC, data=rows, labels=TOPIC.labels)
    assert contents(system) == before
    both = Path(shutil.copytree(home / "rows", tmp_path / "both"))
    shutil.copytree(rows / "topic", both / "topic")
    edit.add_expert(system, tmp_path / "adapter", name="topic", task=TOPIC, data=both, labels=TOPIC.labels)
    assert System.load(system).classes == ["mood", "names", "ask", "topic"]
