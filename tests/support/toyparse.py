"""A spaCy pipeline in miniature: rules in place of a trained parser, so that tests need no model."""

from __future__ import annotations

from typing import Any

import pytest

spacy = pytest.importorskip("spacy")
from spacy.language import Language  # noqa: E402
from spacy.tokens import Doc  # noqa: E402


@Language.component("toy_parser")
def toy_parser(doc: Doc) -> Doc:
    """Chain the words: every word depends on the one before it, and each after a comma or ``and`` opens a clause."""
    roots = [i for i, token in enumerate(doc) if i == 0 or doc[i - 1].text in {".", "?", ";"}]
    for i, token in enumerate(doc):
        token.head = token if i in roots else doc[i - 1]
        clause = i > 0 and doc[i - 1].text in {",", "and"}
        token.dep_ = "ROOT" if i in roots else ("advcl" if clause else "dep")
        token.pos_ = "PUNCT" if token.is_punct else ("DET" if token.lower_ in {"a", "the"} else "NOUN")
    return doc


def toy_pipeline() -> Any:
    """Return the pipeline."""
    nlp = spacy.blank("en")
    nlp.add_pipe("toy_parser", name="parser")
    return nlp
