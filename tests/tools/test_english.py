"""The small English pipeline: small files, no pickle, plain sentences parsed, and a card true to what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import dynamorouter

spacy = pytest.importorskip("spacy")
FOLDER = Path(dynamorouter.__file__).parent / "models" / "english"
DOCS = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.fixture(scope="module")
def nlp() -> Any:
    return spacy.load(FOLDER)


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "measured.json").read_text(encoding="utf-8"))
    return found


def _of(doc: Any, word: str) -> Any:
    return next(token for token in doc if token.text == word)


def test_files_are_small_and_hold_no_pickle_and_no_code() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6e6
    assert not [path for path in files if path.suffix in {".py", ".pkl", ".pickle", ".pt", ".so"}]
    for path in files:
        content = path.read_bytes()
        assert not (content[:1] == b"\x80" and content[1:2] in b"\x02\x03\x04\x05" and content.endswith(b".")), path


def test_no_words_of_the_treebank_are_passed_on() -> None:
    strings = json.loads((FOLDER / "vocab" / "strings.json").read_text(encoding="utf-8"))
    assert len(strings) < 300
    assert {"ROOT", "nsubj", "NNP", "PROPN"} <= set(strings)


def test_parses_a_sentence(nlp: Any) -> None:
    doc = nlp("The old man gave his daughter a book because she loved stories.")
    root = next(token for token in doc if token.head.i == token.i)
    assert root.text == "gave"
    assert _of(doc, "man").dep_ == "nsubj" and _of(doc, "man").head == root
    assert _of(doc, "book").dep_ == "obj" and _of(doc, "book").head == root
    assert _of(doc, "loved").dep_ == "advcl" and _of(doc, "loved").head == root
    assert [_of(doc, word).pos_ for word in ("old", "man", "gave", "his")] == ["ADJ", "NOUN", "VERB", "PRON"]
    assert _of(doc, "gave").tag_ == "VBD"


def test_parses_an_instruction(nlp: Any) -> None:
    doc = nlp("Write a short letter to the company.")
    root = next(token for token in doc if token.head.i == token.i)
    assert root.text == "Write" and root.pos_ == "VERB"
    assert _of(doc, "letter").dep_ == "obj"
    assert _of(doc, "company").dep_ in {"obl", "nmod"}


def test_finds_a_relative_clause(nlp: Any) -> None:
    doc = nlp("The woman who lives here is a doctor.")
    assert _of(doc, "lives").dep_ == "acl:relcl"
    assert _of(doc, "lives").head.text == "woman"


def test_finds_proper_nouns(nlp: Any) -> None:
    doc = nlp("Mary Smith moved from London to Germany in June.")
    assert {"Smith", "London", "Germany", "June"} <= {token.text for token in doc if token.pos_ == "PROPN"}
    assert all(token.tag_.startswith("NNP") for token in doc if token.pos_ == "PROPN")


def test_bounds_sentences(nlp: Any) -> None:
    doc = nlp("I like the house. It is big and has a garden. Do you want to see it?")
    assert [sentence[0].text for sentence in doc.sents] == ["I", "It", "Do"]


def test_a_batch_is_each_text_alone(nlp: Any) -> None:
    texts = ["He ran home.", "", "Explain why the sky is blue, in two sentences.", "   "]
    together = [[(token.dep_, token.head.i, token.tag_) for token in doc] for doc in nlp.pipe(texts)]
    assert together == [[(token.dep_, token.head.i, token.tag_) for token in nlp(text)] for text in texts]


def test_card_says_what_was_measured(measured: dict[str, Any]) -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    page = DOCS.read_text(encoding="utf-8")
    found = measured["validation"]
    for key, value in found["gold_tokens"].items():
        line = f"| {value:.4f} | {found['raw_text'][key]:.4f} |"
        assert line in card and line in page, key
    assert f"{found['sentence_f1_whole_documents']:.4f}" in card
    assert "CC BY-SA 4.0" in card


def test_is_good_enough(measured: dict[str, Any]) -> None:
    """What the analysis of complexity needs; the aim is a UAS of .85."""
    assert measured["validation"]["gold_tokens"]["uas"] >= 0.82
    assert measured["validation"]["raw_text"]["uas"] >= 0.80
    assert measured["validation"]["gold_tokens"]["pos_accuracy"] >= 0.92
