"""How the small English pipeline is made: the treebank as it is read, and a whole tiny run."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

spacy = pytest.importorskip("spacy")
import train_english  # noqa: E402

SUBJECTS = (("Anna", "PROPN", "NNP"), ("Nobody", "PRON", "NN"), ("She", "PRON", "PRP"))
OBJECTS = ("bread", "water", "rice", "fish")


def _row(place: int) -> dict[str, Any]:
    """Return a sentence such as ``She didn't buy bread.``; heads count from 1, and 0 is the root's."""
    subject, part, tag = SUBJECTS[place % 3]
    thing = OBJECTS[place % 4]
    return {
        "sent_id": f"story-{place // 5}-{place:04}",
        "text": f"{subject} didn't buy {thing}.",
        "tokens": [subject, "did", "n't", "buy", thing, "."],
        "upos": [part, "AUX", "PART", "VERB", "NOUN", "PUNCT"],
        "xpos": [tag, "VBD", "RB", "VB", "NN", "."],
        "heads": [4, 4, 4, 0, 4, 4],
        "deprels": ["nsubj", "aux", "advmod", "root", "obj", "punct"],
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("treebank")
    for part, count in (("train", 60), ("validation", 12)):
        (root / f"{part}.jsonl").write_text("".join(json.dumps(_row(n)) + "\n" for n in range(count)), encoding="utf-8")
    return root


def test_sentences_keep_text_heads_and_documents(data: Path) -> None:
    sentences = train_english.read_sentences(data / "train.jsonl")
    assert sentences[0].spaces == [True, False, True, True, False, True]
    assert sentences[0].heads == [3, 3, 3, 3, 3, 3]
    assert sentences[0].labels[3] == "ROOT"
    assert [sentence.document for sentence in sentences[4:6]] == ["story-0", "story-1"]


def test_several_sentences_are_one_document_with_bounds(data: Path) -> None:
    sentences = train_english.read_sentences(data / "train.jsonl")[:2]
    doc = train_english.reference(spacy.blank("en").vocab, sentences)
    assert doc.text.strip() == "Anna didn't buy bread. Nobody didn't buy water."
    assert [sentence.text for sentence in doc.sents] == ["Anna didn't buy bread.", "Nobody didn't buy water."]
    assert [token.head.text for token in doc if token.dep_ == "obj"] == ["buy", "buy"]
    assert doc[9].head.i == 9


def test_groups_are_all_sentences_once(data: Path) -> None:
    sentences = train_english.read_sentences(data / "train.jsonl")
    docs = train_english._documents(spacy.blank("en").vocab, sentences, random.Random(0))
    assert sum(len(list(doc.sents)) for doc in docs) == len(sentences)
    assert max(len(list(doc.sents)) for doc in docs) <= 4


@pytest.mark.e2e
def test_whole_run_learns_writes_and_measures_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = "--width 16 --depth 1 --rows 200 50 50 50 --batch 40 40 --lower 0 --patience 4".split()  # noqa: SIM905
    base = ["train_english.py", "--data", str(data), "--out", str(tmp_path), *small, "--lr", "0.01"]
    monkeypatch.setattr(sys, "argv", [*base, "--minutes", "2"])
    train_english.main()
    folder = tmp_path / "pipeline"
    measured = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    assert measured["validation"]["gold_tokens"]["uas"] > 0.9
    assert measured["validation"]["raw_text"]["tag_accuracy"] > 0.8
    doc = spacy.load(folder)("She didn't buy rice.")
    assert [token.dep_ for token in doc if token.text == "rice"] == ["obj"]
    assert [token.pos_ for token in doc if token.text == "She"] == ["PRON"]
    strings = json.loads((folder / "vocab" / "strings.json").read_text(encoding="utf-8"))
    assert "obj" in strings and "rice" not in strings
    assert f"{measured['validation']['gold_tokens']['las']:.4f}" in (folder / "README.md").read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [*base, "--minutes", "0"])
    train_english.main()
    assert json.loads((folder / "measured.json").read_text(encoding="utf-8")) == measured
    assert "min left" in capsys.readouterr().out
