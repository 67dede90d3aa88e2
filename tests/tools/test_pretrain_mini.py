"""How the embedded decoder is made: what is held out, the order of text, the measure, and a whole tiny run."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import mini_export
import mini_text
import pretrain_mini

NAMES = "Anna Berta Carl Dora Emil Frida Gustav Hanna Ivan Jana Karl Lena".split()  # noqa: SIM905
THINGS = "apples boxes pens stones cups shells coins books".split()  # noqa: SIM905


def _question(place: int) -> dict[str, str]:
    name, thing = NAMES[place % 12], THINGS[place % 8]
    first, second = place + 3, place % 7 + 2
    return {
        "question": f"{name} has {first} {thing} and finds {second} more near the river. How many are there now?",
        "answer": f"{first} + {second} = <<{first}+{second}={first + second}>>{first + second}\n#### {first + second}",
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as the real one; the last book copies a passage of a held-out one."""
    root = tmp_path_factory.mktemp("data")
    books = root / "lm_text" / "gutenberg"
    books.mkdir(parents=True)
    prose = " ".join(
        f"The {thing} of {name} lay upon the table of the house by the sea." for thing in THINGS for name in NAMES
    )
    held = " ".join(
        f"A white rabbit with {thing} ran past {name} down the long dark hall again."
        for thing in THINGS
        for name in NAMES
    )
    (books / "austen-emma.txt").write_text(prose.replace(" The", "\nThe"), encoding="utf-8")
    (books / "carroll-alice.txt").write_text(held, encoding="utf-8")
    (books / "melville-moby_dick.txt").write_bytes(f"Caf\u00e9. {prose[::-1]}".encode("latin-1"))
    (books / "whitman-leaves.txt").write_text(held[:4000], encoding="utf-8")
    wiki = "".join(
        f" \n = Title {n} = \n \n The town of {NAMES[n % 12]} @-@ {n} is old , and small . It has <unk> .\n"
        for n in range(60)
    )
    (root / "lm_text" / "wikitext2.valid.txt").write_text(wiki, encoding="utf-8")
    (root / "lm_text" / "wikitext2.test.txt").write_text(
        wiki.replace("Title", "Other").replace("town", "city"), encoding="utf-8"
    )
    stories = "\n<|endoftext|>\n".join(f"{NAMES[n % 12]} saw {n} {THINGS[n % 8]}. The end." for n in range(90))
    (root / "lm_text" / "tinystories_sample.txt").write_text(stories, encoding="utf-8")
    play = "\n\n".join(f"{NAMES[n % 12]}:\nBring me the {THINGS[n % 8]}, good sir, number {n}!" for n in range(80))
    (root / "lm_text" / "tinyshakespeare.txt").write_text(play, encoding="utf-8")
    rows: dict[str, list[dict[str, Any]]] = {
        "gsm8k/train": [_question(place) for place in range(520)],
        "mbpp/train": [{"text": f"Add {n}.", "code": f"def add(a):\r\n    return a + {n}"} for n in range(20)],
        "mbpp/validation": [{"text": f"Subtract {n}.", "code": f"def sub(a):\n    return a - {n}"} for n in range(5)],
        "ud_ewt/train": [{"sent_id": f"blog-a-{n:04}", "text": f"This is line {n}."} for n in range(9)],
        "ud_ewt/validation": [{"sent_id": f"mail-b-{n:04}", "text": f"That was line {n}."} for n in range(4)],
    }
    for name, found in rows.items():
        path = root / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def corpus(data: Path) -> mini_text.Corpus:
    return mini_text.read_corpus(data)


def test_held_out_rows_are_the_stated_ones(corpus: mini_text.Corpus) -> None:
    held = [document.text for document in corpus.held_out if document.source == "gsm8k"]
    assert len(held) == 500
    assert held[0].startswith("Question: ") and "\nAnswer: " in held[0]
    assert held[-1] == mini_text.question_text(*_question(519).values())
    code = [document for document in corpus.held_out if document.source == "mbpp"]
    assert len(code) == 5 and all("sub" in document.text for document in code)


def test_a_copy_of_held_out_text_is_not_learned(corpus: mini_text.Corpus) -> None:
    assert corpus.dropped["gutenberg"] == 1
    learned = [document.text for document in corpus.train if document.source == "gutenberg"]
    assert len(learned) == 2 and not any("white rabbit" in text for text in learned)
    assert corpus.overlap["gutenberg"] == 0.0


def test_what_overlap_is_left_is_counted() -> None:
    shared = " ".join(f"w{n}" for n in range(mini_text.RUN))
    held = mini_text.Document("a", f"{shared} z", True)
    met = set(mini_text._runs(shared))
    assert mini_text._overlap([held], met) == {"a": 0.5}


def test_text_is_made_plain(corpus: mini_text.Corpus) -> None:
    by: dict[str, list[str]] = {}
    for document in corpus.train:
        by.setdefault(document.source, []).append(document.text)
    assert "sea. The" in by["gutenberg"][0]  # lines of prose are joined
    assert by["gutenberg"][1].startswith("Caf\u00e9.")
    assert "-" in by["wikitext"][0] and "@" not in by["wikitext"][0] and "<unk>" not in by["wikitext"][0]
    assert "is old, and small." in by["wikitext"][0]
    assert not any("\r" in text for text in by["mbpp"])
    assert by["mbpp"][0] == "# Add 0.\ndef add(a):\n    return a + 0"
    assert by["ud_ewt"][0].startswith("This is line 0. This is line 1.")
    assert all("endoftext" not in text for text in by["tinystories"])


def _plan(**changes: Any) -> pretrain_mini.Plan:
    values: dict[str, Any] = {
        "minutes": 0.05, "vocabulary": 300, "layers": 1, "width": 16, "heads": 2, "positions": 16, "batch_tokens": 64,
        "short": 8, "short_share": 0.5, "lr": 1e-3, "warmup": 0.1, "decay": 0.1, "beta2": 0.99, "seed": 0,
    }  # fmt: skip
    return pretrain_mini.Plan(**(values | changes))


def test_learning_rate_rises_then_falls_to_nothing() -> None:
    plan = _plan()
    assert pretrain_mini.learning_rate(0.05, plan) == pytest.approx(plan.lr / 2)
    assert pretrain_mini.learning_rate(0.1, plan) == pytest.approx(plan.lr)
    assert pretrain_mini.learning_rate(0.55, plan) == pytest.approx(plan.lr / 2)
    assert pretrain_mini.learning_rate(1.0, plan) == pytest.approx(0.0, abs=1e-12)


def test_resumed_batches_go_on_where_they_stopped(corpus: mini_text.Corpus) -> None:
    tokenizer = mini_export.train_tokenizer([document.text for document in corpus.train], 300)
    pieces = pretrain_mini.encode(corpus, tokenizer)
    plan, state = _plan(), pretrain_mini.State()
    flow = pretrain_mini.batches(pieces, plan, state)
    first = [next(flow) for _ in range(3)]
    assert first[0].shape == (8, 9)  # short rows at first
    place = state.place
    expected = next(flow)
    again = pretrain_mini.batches(pieces, plan, pretrain_mini.State(place=place))
    assert torch.equal(next(again), expected)
    late = pretrain_mini.State(seconds=plan.minutes * 60)
    assert next(pretrain_mini.batches(pieces, plan, late)).shape == (4, 17)


def test_bits_per_byte_of_a_model_that_knows_nothing(corpus: mini_text.Corpus) -> None:
    tokenizer = mini_export.train_tokenizer([document.text for document in corpus.train], 300)
    model = pretrain_mini.build(_plan())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    some = corpus.held_out[::20]
    found = mini_export.bits_per_byte(model, tokenizer, some, bytes_each=10**9)
    held = [document.text for document in some]
    tokens = sum(len(tokenizer.encode(text).ids) for text in held)
    size = sum(len(text.encode()) for text in held)
    assert found["overall"] == pytest.approx(tokens * math.log2(300) / size, rel=1e-4)
    assert set(found) == {*(document.source for document in some), "overall"}


@pytest.mark.e2e
def test_whole_run_writes_a_model_that_loads_and_resumes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    small = "--vocabulary 300 --layers 1 --width 16 --heads 2 --positions 256 --short 128 --batch-tokens 256".split()  # noqa: SIM905
    base = ["pretrain_mini.py", "--data", str(data), "--out", str(tmp_path), *small, "--measure-bytes", "500"]
    monkeypatch.setattr(sys, "argv", [*base, "--minutes", "0.02", "--lr", "0.002"])
    pretrain_mini.main()
    monkeypatch.setattr(sys, "argv", [*base, "--minutes", "0.03", "--lr", "0.001", "--resume"])
    pretrain_mini.main()
    folder = tmp_path / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float32 and tokenizer.pad_token_id == 1
    text = "Anna has 12 apples.\n\tdef \u00e9\U0001f600"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    measured = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    assert measured["changes"] == [{"minute": pytest.approx(0.0, abs=0.1), "lr": 0.002, "minutes": 0.02}]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"{measured['bits_per_byte']['overall']:.4f}" in card and "lr 0.002" in card
    monkeypatch.setattr(sys, "argv", [*base, "--minutes", "0.03", "--decay", "0.5", "--resume"])
    with pytest.raises(SystemExit, match="other values of decay"):
        pretrain_mini.main()
    assert "held-out bits per byte" in capsys.readouterr().out
