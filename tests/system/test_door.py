"""A system from nothing but a base: experts trained on rows or imported, a router, and the commands for all of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from dynamorouter.errors import AdapterError, ConfigError, DataError, LibraryError
from dynamorouter.model.base.config import BaseSpec
from dynamorouter.system.joining import score_of
from dynamorouter.system.system import System
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Columns, Task
from dynamorouter.training.config import ExpertConfig
from support.builders import ASK, MOOD, make_rows
from support.shared import made_once
from support.tinyrun import call, contents, refused, write_lines
from system.test_edit import peft_model

FAST = ExpertConfig(rank=2, alpha=8, learning_rate=0.02, batch_rows=8, epochs=8)
MOODS = [{"text": row.text, "label": row.target} for row in make_rows(MOOD, 60)]
QUESTIONS = make_rows(ASK, 24)
YAML = "head: classification\ncolumns: {text: text, target: label}\nlabels: [bad, good]\nmax_tokens: 32\nstride: 8\n"


@pytest.fixture(scope="session")
def two_experts(tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a saved system of an expert that was trained on mappings and one of records; no test may change it."""

    def make(folder: Path) -> None:
        system = System.new(tiny_folder("bert"), device="cpu")
        system.add_expert("mood", task=MOOD, rows=MOODS, settings=FAST)
        system.add_expert("ask", task=ASK, rows=QUESTIONS, settings=FAST.model_copy(update={"epochs": 2}))
        system.fit_router()
        system.save(folder / "system")

    return made_once(tmp_path_factory, "two_experts", make) / "system"


def test_a_system_without_experts_is_saved_and_says_what_it_lacks(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    place = tiny_folder("bert")
    System.new(str(place), device="cpu").save(tmp_path / "empty")
    empty = System.load(tmp_path / "empty", device="cpu")
    assert (empty.names, empty.router, empty.router_base) == ([], None, "bert")
    with pytest.raises(ConfigError, match=r"no expert yet.*add_expert.*dynamorouter import"):
        empty.predict(["a film"])
    with pytest.raises(ConfigError, match=r"has no expert"):
        empty.predict(["a film"], tasks=["mood"])
    named = System.new(BaseSpec(name="mine", path=str(place)), device="cpu")
    assert System.new(named.bases["mine"]).router_base == "mine"
    with pytest.raises(ConfigError, match=r"no base 'minilmm' \(did you mean 'minilm'\?\).*OWNER/NAME"):
        System.new("minilmm")


def test_experts_of_rows_answer_and_are_routed_to(two_experts: Path) -> None:
    system = System.load(two_experts, device="cpu")
    assert system.classes == ["mood", "ask"]
    texts = ["a film great joy", "slow team poor waste", "where was anna ?"]
    found = system.predict(texts, [None, None, "anna was in paris ."])
    assert [p.expert for p in found] == ["mood", "mood", "ask"]
    assert [p.answer.value for p in found[:2] if p.answer] == ["good", "bad"]


def test_few_rows_all_train_and_the_interval_says_how_sure_that_is(tiny_folder: Callable[[str], Path]) -> None:
    system = System.new(tiny_folder("bert"), device="cpu")
    added = system.add_expert("mood", task=MOOD, rows=MOODS[:16], settings=FAST)
    assert added.train_rows == added.scored_rows == 16  # each row was scored by an expert that had not seen it
    assert added.score is not None and added.interval is not None
    low, high = added.interval
    assert low < added.score <= high and high - low > 0.15
    assert f"{added.score:.3f} [{low:.3f}, {high:.3f}] on 16 rows" in str(added)
    before = contents_of(system)
    for rows, message in ((MOODS[:2], "2 rows .*at least 4"), ([{"text": "a", "label": "odd"}] * 8, "odd")):
        with pytest.raises(DataError, match=message):
            system.add_expert("more", task=MOOD, rows=rows, settings=FAST)
    with pytest.raises(LibraryError, match="an expert 'mood' already"):
        system.add_expert("mood", task=MOOD, rows=MOODS)
    assert contents_of(system) == before


def contents_of(system: System) -> tuple[list[str], list[str], Any]:
    (answer,) = system.predict(["a film great joy"], tasks=["mood"])
    return system.names, list(system.skills), answer.answer


def test_rows_of_a_data_set_are_rows(tiny_folder: Callable[[str], Path]) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    rows = Dataset.from_list(
        [{"text": row["text"], "label": ["bad", "good"].index(str(row["label"]))} for row in MOODS[:24]], features
    )
    system = System.new(tiny_folder("bert"), device="cpu")
    added = system.add_expert("mood", task=MOOD, rows=rows, settings=FAST)
    assert added.score is not None and added.score > 0.8


def test_an_adapter_is_fetched_by_its_hub_id_where_that_is_allowed(two_experts: Path) -> None:
    system = System.load(two_experts, device="cpu")
    with pytest.raises(AdapterError, match=r"no folder 'someone/adapter'.*HF_HUB_OFFLINE must not be 1"):
        system.add_expert("new", task=MOOD, rows=MOODS, adapter="someone/adapter")
    assert system.names == ["mood", "ask"]


def test_a_few_right_answers_are_no_certainty() -> None:
    task = Task(name="t", head="classification", columns=Columns(text="text", target="label"), labels=("a", "b"))
    answered: list[tuple[Record, Answer | None]] = [
        (Record(str(i), None, 0, "t", "a", str(i)), Answer("classification", "a", 0.9)) for i in range(8)
    ]
    value, (low, high) = score_of(task, answered, seed=0)
    assert value == 1.0 and low == pytest.approx(0.676, abs=0.001) and high == pytest.approx(1.0)


@pytest.fixture(scope="session")
def adapters(two_experts: Path, tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of adapters: a classifier that PEFT trained, its labels named, and one without a head."""

    def make(folder: Path) -> None:
        base = tiny_folder("bert")
        model = peft_model(base, "SEQ_CLS", labels=2)
        tokens = AutoTokenizer.from_pretrained(base)([row["text"] for row in MOODS], padding=True, return_tensors="pt")
        labels = torch.tensor([["bad", "good"].index(str(row["label"])) for row in MOODS])
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for _ in range(40):
            model(**tokens, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(folder / "mood")
        (folder / "mood" / "config.json").write_text(json.dumps({"id2label": {"0": "bad", "1": "good"}}))
        shutil.copytree(two_experts / "experts" / "ask", folder / "ask")
        for file in ("card.json", "head.safetensors", "skill.safetensors"):
            (folder / "ask" / file).unlink()

    return made_once(tmp_path_factory, "adapters", make)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_lines(tmp_path / "data" / "mood" / "train.jsonl", MOODS)
    asked = [
        {
            "question": row.text,
            "context": row.pair,
            "answers": {"text": row.target["texts"], "answer_start": row.target["starts"]},
        }
        for row in QUESTIONS
        if isinstance(row.target, dict)
    ]
    write_lines(tmp_path / "data" / "ask" / "train.jsonl", asked)
    (tmp_path / "ask.yaml").write_text(
        "head: span\ncolumns: {text: question, pair: context, target: answers}\nmetrics: [squad_f1]\n"
        "max_tokens: 32\nstride: 8\n"
    )
    return tmp_path / "data"


def test_a_folder_of_adapters_from_the_command_line(
    adapters: Path, tiny_folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    system = tmp_path / "system"
    said = call("new", system, "--base", tiny_folder("bert"))
    assert said.exit_code == 0 and "over base 'bert'" in said.stdout
    refused(call("new", system, "--base", "mini"), "is there already")
    line = ("import", system, adapters, "--data", data)
    empty = contents(system)
    refused(call(*line), "task of adapter 'ask' is not known", "--task ask=TASK")
    refused(call(*line, "--task", "who=ask"), "no adapter 'who'", "ask, mood")
    refused(call(*line, "--task", "squad"), "write --task NAME=squad")
    assert contents(system) == empty
    said = call(*line, "--task", f"ask={tmp_path / 'ask.yaml'}")
    assert said.exit_code == 0, said.output
    assert "score mood" in said.stderr and "score ask" in said.stderr and "router" in said.stderr
    for words in ("mood: accuracy 1.000 [", "on 60 rows", "it was fitted anew", "added 'ask', 'mood'"):
        assert words in said.stdout
    imported = System.load(system, device="cpu")
    texts = [str(row["text"]) for row in MOODS[:8]]
    found = imported.predict(texts)
    assert [p.expert for p in found] == ["mood"] * 8
    assert [p.answer.value for p in found if p.answer] == [row["label"] for row in MOODS[:8]]


def test_an_import_that_is_refused_by_its_rows_leaves_a_system_as_it_was(
    two_experts: Path, adapters: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(adapters / "mood", tmp_path / "mood"))
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "good", "1": "bad"}}))
    system = System.load(two_experts, device="cpu")
    before = contents_of(system)
    with pytest.raises(AdapterError, match="another order"):
        system.add_expert("new", task=MOOD, rows=MOODS, adapter=folder)
    assert contents_of(system) == before
    added = system.add_expert("new", task=MOOD, rows=MOODS, adapter=adapters / "mood")
    assert added.score == 1.0 and added.train_rows == 0 and added.scored_rows == 60


def test_a_further_expert_and_the_router_of_a_saved_system(two_experts: Path, data: Path, tmp_path: Path) -> None:
    system = Path(shutil.copytree(two_experts, tmp_path / "system"))
    words = ("team match won", "bank shares rose")
    more = tmp_path / "more"
    write_lines(
        more / "topic" / "train.jsonl", [{"text": f"{words[i % 2]} {i}", "label": "ab"[i % 2]} for i in range(24)]
    )
    (tmp_path / "topic.yaml").write_text(YAML.replace("bad, good", "a, b"))
    line = ("expert", "train", system, "--task", tmp_path / "topic.yaml", "--data", more)
    refused(call(*line, "experts.epoch=3", "router.epochs=2"), "2 settings are wrong", "epochs", "router.epochs")
    before = {path: value for path, value in contents(system).items() if path.startswith("experts/")}
    said = call(*line, "experts.rank=2", "experts.learning_rate=0.02", "experts.epochs=4", "seed=1")
    assert said.exit_code == 0, said.output
    assert "old routes were kept" in said.stdout and "added 'topic'" in said.stdout and "] on 24 rows" in said.stdout
    after = contents(system)
    changed = [path for path, value in before.items() if after[path] != value]
    assert all(path.endswith("skill.safetensors") for path in changed)
    assert System.load(system, device="cpu").experts[-1].lora.rank == 2
    said = call("fit", "router", system, "--data", data, "router.epochs=30", "router.hidden=16", "--max-loss", "0.2")
    assert said.exit_code == 0 and "it was fitted anew" in said.stdout, said.output
    refused(call("fit", "router", tmp_path / "none"), "is no saved system", "--out DIR")
    refused(call("fit", "router", "quickstart", "--data", data, "--out", tmp_path / "none"), "leave it out")


@pytest.mark.parametrize("page", ["README.md", "docs/python.md", "docs/adapters.md"])
def test_examples_that_begin_without_a_system_run(
    page: str, adapters: Path, tiny_folder: Callable[[str], Path], data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    blocks = [b for b in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "System.new(" in b]
    assert len(blocks) == (2 if page == "docs/python.md" else 1)
    shutil.copytree(adapters / "mood", tmp_path / "adapters" / "mood")
    data.rename(tmp_path / "rows")
    monkeypatch.chdir(tmp_path)
    moods = {"bad": "negative", "good": "positive"}
    reviews = [{"text": row.text, "label": moods[str(row.target)]} for row in make_rows(MOOD, 96)]
    topics = ("World", "Sports", "Business", "Sci-Tech")
    news = [{"text": f"bank shares rose {'the ' * (i // 4)}{topics[i % 4]}", "label": topics[i % 4]} for i in range(96)]
    for block in blocks:
        code = block.replace('"minilm"', repr(str(tiny_folder("bert"))))
        exec(compile(code, page, "exec"), {"reviews": reviews, "news": news})
        assert set(System.load("systems/mine", device="cpu").classes) in ({"mood"}, {"sst2", "ag_news"})
        shutil.rmtree("systems")
