"""What a parser's labels mean: ClearNLP (spaCy's English pipelines) and Universal Dependencies side by side.

The labels of the two schemes overlap and nowhere contradict each other in what is asked of them here, so one table
serves both. Subtypes after a colon (``acl:relcl``) count as their main label.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spacy.tokens import Doc, Token

EMBEDDED = frozenset({"acl", "advcl", "ccomp", "csubj", "csubjpass", "pcomp", "relcl", "xcomp"})
"""Labels of a clause inside another; ``pcomp``, ``relcl`` and ``csubjpass`` are ClearNLP's own."""
BESIDE = frozenset({"conj", "parataxis"})
"""Labels of what may be a clause on the same level as its head."""
_PREDICATE = frozenset({"aux", "auxpass", "cop", "csubj", "csubjpass", "expl", "nsubj", "nsubjpass"})
"""Labels that only the predicate of a clause governs."""
CONTENT = frozenset({"ADJ", "ADV", "INTJ", "NOUN", "NUM", "PROPN", "VERB"})
"""Parts of speech of words that carry meaning."""
_PROPER_TAGS = frozenset({"NNP", "NNPS"})


def label(token: Token) -> str:
    """Return the main label of a token's dependency, in lower case."""
    return token.dep_.partition(":")[0].lower()


def is_root(token: Token) -> bool:
    """Tell whether a token heads its sentence; spaCy lets a root be its own head."""
    return token.head.i == token.i


def opens_clause(token: Token) -> bool:
    """Tell whether a token is the head of a clause: its sentence's root, an embedded one, or one coordinated."""
    kind = label(token)
    if is_root(token) or kind in EMBEDDED:
        return True
    if kind not in BESIDE:
        return False
    return token.pos_ in ("AUX", "VERB") or any(label(child) in _PREDICATE for child in token.children)


def is_embedded(token: Token) -> bool:
    """Tell whether a token heads a clause inside another one."""
    return not is_root(token) and label(token) in EMBEDDED


def entity_words(doc: Doc) -> int:
    """Count the words inside entities: those the pipeline found, else proper nouns where it looks for none."""
    if doc.has_annotation("ENT_IOB"):
        return sum(bool(token.ent_type_) and not token.is_punct for token in doc)
    return sum(token.pos_ == "PROPN" or token.tag_ in _PROPER_TAGS for token in doc)
