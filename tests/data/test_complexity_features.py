"""Features of sentences with known trees, in both label schemes; the score, its caps, and what it never reads."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

spacy = pytest.importorskip("spacy")
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from spacy.tokens import Doc  # noqa: E402

from dynamorouter.data.complexity import analyzer  # noqa: E402
from dynamorouter.data.complexity.analyzer import Analyzer  # noqa: E402
from dynamorouter.data.complexity.features import NAMES, Features, measure, syllables  # noqa: E402
from dynamorouter.data.complexity.prepare import measured  # noqa: E402
from dynamorouter.data.complexity.score import RESPONSE, ScoreOptions, analysis_score, score  # noqa: E402
from dynamorouter.errors import ConfigError, MissingExtraError  # noqa: E402
from dynamorouter.tasks.record import Record  # noqa: E402
from support.toyparse import toy_pipeline  # noqa: E402

VOCAB = spacy.blank("en").vocab


def tree(rows: list[tuple[str, int, str, str]], *, ents: list[str] | None = None) -> Doc:
    """Build a parsed sentence from (word, head's index, label, part of speech)."""
    words, heads, deps, tags = (list(column) for column in zip(*rows, strict=True))
    return Doc(VOCAB, words=words, heads=heads, deps=deps, pos=tags, ents=ents)


# "Explain why birds that live here sing when it rains." Two labels differ between the schemes: relcl, advmod's place.
SENTENCE = [
    ("Explain", 0, "ROOT", "VERB"),
    ("why", 6, "advmod", "ADV"),
    ("birds", 6, "nsubj", "NOUN"),
    ("that", 4, "nsubj", "PRON"),
    ("live", 2, "relcl", "VERB"),
    ("here", 4, "advmod", "ADV"),
    ("sing", 0, "ccomp", "VERB"),
    ("when", 9, "advmod", "ADV"),
    ("it", 9, "nsubj", "PRON"),
    ("rains", 6, "advcl", "VERB"),
    (".", 0, "punct", "PUNCT"),
]
UD = [(w, h, {"relcl": "acl:relcl", "ROOT": "root"}.get(d, d), p) for w, h, d, p in SENTENCE]


@pytest.mark.parametrize("rows", [SENTENCE, UD], ids=["clearnlp", "ud"])
def test_known_sentence(rows: list[tuple[str, int, str, str]]) -> None:
    found = measure([tree(rows)])
    assert found.length == 10
    assert found.clauses == 4  # explain, live, sing, rains
    assert found.dependency_depth == 4  # explain > sing > birds > live > here
    assert found.syntactic_depth == 3  # main, sing, live
    assert found.syntactic == 7
    assert found.semantic_diversity == 8  # all but that, it
    assert found.vocabulary_richness == pytest.approx(10 / math.sqrt(10))
    assert found.entity_density == 0


def test_coordinated_clauses_count_without_embedding_and_coordinated_nouns_do_not() -> None:
    rows = [
        ("Wash", 0, "ROOT", "VERB"),
        ("cups", 0, "dobj", "NOUN"),
        ("and", 1, "cc", "CCONJ"),
        ("plates", 1, "conj", "NOUN"),
        ("and", 0, "cc", "CCONJ"),
        ("dry", 0, "conj", "VERB"),
        ("them", 5, "dobj", "PRON"),
    ]
    found = measure([tree(rows)])
    assert (found.clauses, found.syntactic_depth) == (2, 1)


def test_a_predicate_without_a_verb_is_a_clause_in_universal_dependencies() -> None:
    rows = [
        ("He", 1, "nsubj", "PRON"),
        ("sings", 1, "root", "VERB"),
        ("and", 5, "cc", "CCONJ"),
        ("she", 5, "nsubj", "PRON"),
        ("is", 5, "cop", "AUX"),
        ("happy", 1, "conj", "ADJ"),
    ]
    assert measure([tree(rows)]).clauses == 2


def test_subject_clauses_and_gerunds_of_clearnlp_are_clauses() -> None:
    rows = [
        ("Seeing", 1, "csubj", "VERB"),
        ("helps", 1, "ROOT", "VERB"),
        ("in", 1, "prep", "ADP"),
        ("learning", 2, "pcomp", "VERB"),
    ]
    found = measure([tree(rows)])
    assert (found.clauses, found.syntactic_depth, found.dependency_depth) == (3, 2, 2)


def test_entities_come_from_the_pipeline_or_else_from_proper_nouns() -> None:
    rows = [("Anna", 1, "nsubj", "PROPN"), ("sees", 1, "ROOT", "VERB"), ("it", 1, "obj", "PRON")]
    assert measure([tree(rows)]).entity_density == pytest.approx(1 / 3)
    assert measure([tree(rows, ents=["O", "O", "B-DATE"])]).entity_density == pytest.approx(1 / 3)
    assert measure([tree(rows, ents=["O", "O", "O"])]).entity_density == 0


def test_an_input_adds_counts_and_leaves_the_deeper_depth() -> None:
    one, two = measure([tree(SENTENCE)]), measure([tree(SENTENCE), tree([("Go", 0, "ROOT", "VERB")])])
    assert two.length == one.length + 1
    assert two.clauses == one.clauses + 1
    assert two.dependency_depth == one.dependency_depth


def test_readability_is_the_grade_of_flesch_and_kincaid() -> None:
    found = measure([tree([("The", 1, "det", "DET"), ("cat", 2, "nsubj", "NOUN"), ("slept", 2, "ROOT", "VERB")])])
    assert found.readability == pytest.approx(max(0.0, 0.39 * 3 + 11.8 * 1 - 15.59))
    assert [syllables(word) for word in ("cat", "table", "make", "idea", "hmm", "12")] == [1, 2, 1, 2, 1, 1]


def test_nothing_but_punctuation_measures_nothing() -> None:
    assert measure([tree([("?", 0, "ROOT", "PUNCT")])]) == Features()
    assert measure([]) == Features()


def test_score_weighs_capped_features_and_leaves_the_response_out() -> None:
    options = ScoreOptions()
    half = Features(length=25, syntactic=5, semantic_diversity=15, dependency_depth=5)
    assert score(half, options) == pytest.approx(0.5)
    only = ScoreOptions(weights={"length": 0.2, "dependency_depth": 0.15, RESPONSE: 0.2})
    assert score(Features(length=50), only) == pytest.approx(0.2 / 0.35)
    full = Features(length=500, syntactic=100, semantic_diversity=300, dependency_depth=100)
    assert score(full, options) == 1.0
    assert analysis_score(full, 50, options) == pytest.approx(0.8 + 0.2 * 0.5)
    assert analysis_score(Features(), 1000, options) == pytest.approx(0.2)


@given(st.lists(st.floats(0, 1e6), min_size=len(NAMES), max_size=len(NAMES)), st.integers(0, len(NAMES) - 1))
def test_score_is_between_0_and_1_and_never_falls(values: list[float], at: int) -> None:
    found, options = Features(*values), ScoreOptions()
    more = replace(found, **{NAMES[at]: values[at] + 1})
    assert 0 <= score(found, options) <= score(more, options) <= 1


@pytest.mark.parametrize(
    ("weights", "caps", "said"),
    [
        ({"lenght": 1.0}, {}, "did you mean 'length'"),
        ({"length": -1.0}, {"length": 5.0}, "0 or more"),
        ({"length": 1.0}, {"length": 0.0}, "more than 0"),
        ({"length": 1.0}, {}, "no cap"),
        ({RESPONSE: 1.0}, {RESPONSE: 1.0}, "no feature of the instruction"),
    ],
)
def test_wrong_weights_are_refused(weights: dict[str, float], caps: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ScoreOptions(weights, caps)


def test_no_feature_reads_the_response() -> None:
    toy = Analyzer(toy_pipeline(), name="toy")
    rows = [Record("Name a fruit", "or two", 0, "t", {"texts": [text]}, "1") for text in ("plum", "x y , z " * 90)]
    one, two = (measured([row], toy, ScoreOptions()) for row in rows)
    assert one.features == two.features and one.scores == two.scores


def test_analyzer_keeps_the_order_and_parses_inputs_apart() -> None:
    toy = Analyzer(toy_pipeline(), name="toy")
    found = list(toy.features([("one two three", None), ("one", "two three four"), ("one two", "")]))
    assert [features.length for features in found] == [3, 4, 2]
    assert [features.dependency_depth for features in found] == [2, 2, 1]


def test_a_pipeline_without_parser_is_refused() -> None:
    with pytest.raises(ConfigError, match="no parser"):
        Analyzer(spacy.blank("en"), name="blank")


def test_a_pipeline_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="'nowhere_sm'"):
        Analyzer.load("nowhere_sm")


def test_without_spacy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(MissingExtraError, match=r"dynamorouter\[complexity\]"):
        analyzer.Analyzer.load("own")
