"""What a text may hold, and when two texts count as the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from dynamorouter.errors import DataError

MAX_CHARS = 50_000
"""Longest text, in characters, that is accepted without being asked to."""

_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""C1 controls are let through: real texts hold them by the thousand, as remains of other encodings."""
_NO_WORD = re.compile(r"[\W_]+")


def text_problem(text: object, *, max_chars: int = MAX_CHARS) -> tuple[str, str] | None:
    """Say why a text cannot be used.

    Args:
        text: the value to look at.
        max_chars: longest allowed text in characters.

    Returns:
        ``None`` for a good text, else a short code (``not_text``, ``empty``, ``too_long`` or ``control_characters``)
        and a sentence naming what was found, what is allowed and the remedy.
    """
    if not isinstance(text, str):
        return "not_text", f"is {type(text).__name__} {str(text)[:40]!r}, not a string; give it as text"
    if not text.strip():
        return "empty", f"is empty ({len(text)} characters, all blank); give at least one visible character"
    if len(text) > max_chars:
        return "too_long", f"has {len(text)} characters; at most {max_chars} are allowed: shorten or split it"
    forbidden = _FORBIDDEN.search(text)
    if forbidden is None:
        return None
    code = ord(forbidden.group())
    what = "half of a surrogate pair" if 0xD800 <= code <= 0xDFFF else "a control character"
    return "control_characters", (
        f"holds {what}, U+{code:04X}, at position {forbidden.start()}; "
        "of the control characters only line ends and tab are allowed: remove or replace it"
    )


def check_text(text: object, *, where: str, max_chars: int = MAX_CHARS) -> None:
    """Refuse a text that no tokenizer should be given.

    Args:
        text: the value to look at.
        where: what the text is, for the message, such as ``"line 3: text"``.
        max_chars: longest allowed text in characters.

    Raises:
        DataError: it is no string, is blank, too long, or holds control characters or lone surrogates.
    """
    problem = text_problem(text, max_chars=max_chars)
    if problem is not None:
        raise DataError(f"{where} {problem[1]}")


def normalise(text: str) -> str:
    """Fold case and collapse punctuation and whitespace, so that trivially different texts become equal.

    A text without any letter or digit keeps its punctuation, so that ``"?"`` and ``"!"`` stay two texts.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _NO_WORD.sub(" ", folded).strip() or " ".join(folded.split())


def text_key(text: str, pair: str | None) -> str:
    """Return the normalised text and pair as one string: rows with equal keys are the same row."""
    return f"{normalise(text)}\x1f{'' if pair is None else normalise(pair)}"


def check_rows(
    texts: Sequence[str], pairs: Sequence[str | None] | None = None, *, max_chars: int = MAX_CHARS
) -> list[tuple[str, str | None]]:
    """Pair texts up and refuse what no tokenizer should be given.

    Raises:
        DataError: the lists differ in length, or a text is empty, too long or holds control characters.
    """
    if isinstance(texts, str):
        raise DataError("texts is one string; give a list of strings, such as [text]")
    seconds: Sequence[str | None] = [None] * len(texts) if pairs is None else pairs
    if len(seconds) != len(texts):
        raise DataError(
            f"there are {len(texts)} texts, but {len(seconds)} pairs; give one pair, or None, for each text"
        )
    for i, (text, pair) in enumerate(zip(texts, seconds, strict=True)):
        check_text(text, where=f"text {i + 1}", max_chars=max_chars)
        if pair is not None:
            check_text(pair, where=f"pair {i + 1}", max_chars=max_chars)
    return list(zip(texts, seconds, strict=True))


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return the character span of each whitespace-separated word."""
    return [match.span() for match in re.finditer(r"\S+", text)]
