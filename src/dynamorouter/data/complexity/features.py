"""Features of an instruction and its input, from their dependency trees. No response is read here.

Sources of the measures: Flesch and Kincaid, 1975 (readability); Guiraud, 1954 (vocabulary richness); the depth of
clause embedding follows Hunt, 1965, "Grammatical structures written at three grade levels".
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING

from dynamorouter.data.complexity.schemes import CONTENT, entity_words, is_embedded, is_root, opens_clause

if TYPE_CHECKING:
    from spacy.tokens import Doc, Token


@dataclass(frozen=True, slots=True)
class Features:
    """What is measured of one instruction together with its input.

    Attributes:
        length: words; punctuation does not count.
        dependency_depth: arcs on the longest path from a sentence's root to a word.
        syntactic_depth: clauses inside each other, the main clause being one.
        clauses: clauses in all sentences.
        syntactic: ``syntactic_depth`` plus ``clauses``: how deep and how wide the syntax is.
        semantic_diversity: different content words, in lower case.
        entity_density: share of the words that belong to entities, 0 to 1.
        vocabulary_richness: different words over the square root of all words (Guiraud's index).
        readability: Flesch-Kincaid grade in school years, at least 0.
    """

    length: float = 0.0
    dependency_depth: float = 0.0
    syntactic_depth: float = 0.0
    clauses: float = 0.0
    syntactic: float = 0.0
    semantic_diversity: float = 0.0
    entity_density: float = 0.0
    vocabulary_richness: float = 0.0
    readability: float = 0.0

    def row(self) -> tuple[float, ...]:
        """Return the values in the order of ``NAMES``."""
        return astuple(self)


NAMES = tuple(field.name for field in fields(Features))
"""The features' names, in order."""


def measure(docs: Sequence[Doc]) -> Features:
    """Measure an instruction, given as its parsed parts: the instruction, and its input if it has one.

    Counts are added over the parts, depths are the deepest of them.
    """
    tokens = [token for doc in docs for token in doc if not token.is_space]
    words = [token for token in tokens if not token.is_punct]
    if not words:
        return Features()
    sentences = sum(is_root(token) for token in tokens)
    clauses = sum(opens_clause(token) for token in tokens)
    forms = [token.lower_ for token in words]
    depths = [_depths(token) for token in words]
    embedding = 1 + max(depth for _, depth in depths)
    return Features(
        length=float(len(words)),
        dependency_depth=float(max(depth for depth, _ in depths)),
        syntactic_depth=float(embedding),
        clauses=float(clauses),
        syntactic=float(clauses + embedding),
        semantic_diversity=float(len({token.lower_ for token in words if token.pos_ in CONTENT})),
        entity_density=min(1.0, sum(map(entity_words, docs)) / len(words)),
        vocabulary_richness=len(set(forms)) / math.sqrt(len(words)),
        readability=_grade(forms, sentences),
    )


def syllables(word: str) -> int:
    """Estimate the syllables of an English word: groups of vowels, without a silent final e; at least one."""
    lower = re.sub(r"[^a-z]", "", word.lower())
    groups = len(re.findall(r"[aeiouy]+", lower))
    silent = lower.endswith("e") and not lower.endswith(("le", "ee", "ie", "ye")) and groups > 1
    return max(1, groups - silent)


def _depths(token: Token) -> tuple[int, int]:
    """Return the arcs, and the embedded clauses, between a token and its sentence's root."""
    arcs = clauses = 0
    while not is_root(token):
        arcs += 1
        clauses += is_embedded(token)
        token = token.head
    return arcs, clauses


def _grade(words: Sequence[str], sentences: int) -> float:
    spoken = sum(map(syllables, words))
    return max(0.0, 0.39 * len(words) / max(1, sentences) + 11.8 * spoken / len(words) - 15.59)
