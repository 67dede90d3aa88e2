"""Short pieces of rows: whole sentences or runs of words of their own row, as many as asked, the same every time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dynamorouter.data.short import LEAST_WORDS, LONGEST_PIECE, shortened
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Columns
from support.builders import ASK, MOOD, NAMES, make_rows

NEWS = "Shares rose on Friday, and the bank said so. Rain fell in Paris all day long. Nobody won."


def record(text: str, key: str = "0", pair: str | None = None) -> Record:
    return Record(text, pair, 0, "mood", "good", key)


@given(
    st.lists(st.sampled_from(["film", "The", "dull.", "Great!", "and,", "acme"]), min_size=1, max_size=30),
    st.integers(0, 9),
)
def test_a_piece_is_consecutive_words_of_its_row(words: list[str], seed: int) -> None:
    for piece in shortened(MOOD, [record(" ".join(words))], share=1.0, seed=seed):
        own = piece.text.removesuffix(".").split()
        bare = [word.rstrip(".,") for word in words]
        starts = [i for i in range(len(words)) if bare[i : i + len(own)] == [word.rstrip(".,") for word in own]]
        assert starts and LEAST_WORDS <= len(own) < len(words)
        assert (piece.target, piece.id) == ("good", "0#short")


def test_of_several_sentences_a_whole_one_is_taken() -> None:
    sentences = {"Shares rose on Friday, and the bank said so.", "Rain fell in Paris all day long."}
    found = {piece.text for seed in range(30) for piece in shortened(MOOD, [record(NEWS)], share=1.0, seed=seed)}
    assert found == sentences  # "Nobody won." is shorter than any piece
    for seed in range(30):
        (piece,) = shortened(MOOD, [record("a film that was dull and slow and never " * 3)], share=1.0, seed=seed)
        assert len(piece.text.split()) <= LONGEST_PIECE


def test_a_share_of_the_rows_and_the_same_ones_every_time() -> None:
    rows = [record(f"a film that was dull {i}", str(i)) for i in range(400)]
    half = list(shortened(MOOD, rows, share=0.5, seed=1))
    assert 150 < len(half) < 250 and half == list(shortened(MOOD, rows, share=0.5, seed=1))
    assert [piece.id for piece in half] != [piece.id for piece in shortened(MOOD, rows, share=0.5, seed=2)]
    alone = [piece for row in rows for piece in shortened(MOOD, [row], share=0.5, seed=1)]
    assert alone == half  # a row's piece does not depend on the rows beside it
    assert not list(shortened(MOOD, rows, share=0.0, seed=1))


def test_of_pairs_contexts_alone_have_pieces_and_marked_rows_one_that_marks_something() -> None:
    twos = MOOD.model_copy(update={"columns": Columns(text="text", target="label", pair="other")})
    assert not list(shortened(twos, [record("a film", pair=NEWS)], share=1.0, seed=0))
    asked = make_rows(ASK, 9)
    for piece, row in zip(shortened(ASK, asked, share=1.0, seed=0), asked, strict=True):  # a context, not its question
        assert piece.text == row.text and str(piece.pair).removesuffix(".") in str(row.pair) and piece.pair != row.pair
    pieces = [piece for seed in range(9) for piece in shortened(NAMES, make_rows(NAMES, 40), share=1.0, seed=seed)]
    assert pieces and all(set(p.text.rstrip(".").split()) & {"anna", "paris", "berlin"} for p in pieces)
