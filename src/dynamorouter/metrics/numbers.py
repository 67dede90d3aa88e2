"""The final answer of a worked solution as a number, however people write numbers."""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from fractions import Fraction

FINAL = "####"
"""What stands before the final answer of a worked solution, as in GSM8K."""
DIGITS = 1000
"""A number of more digits, as a text that runs in circles may hold, is none."""

_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_LATEX = (
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"\1/\2"),
    (re.compile(r"\{,\}|\\[,!;]"), "\u202f"),
)
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
_THIN = "'\u2019\u00a0\u2009\u202f"
"""What parts thousands and stands between no two numbers."""
_SIGN = r"(?<![0-9A-Za-z_)\]%.])(?P<sign>[-\u2212])"
_CURRENCY = r"(?:[$\u00a3\u20ac\u00a5]\s?)"
_DECIMAL = r"(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,3}(?![0-9A-Za-z]))?"
_GROUPED = (
    r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])"  # 1,234,567
    r"|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?![0-9])"  # 12,34,567
    rf"|[0-9]{{1,3}}(?:[{_THIN}][0-9]{{3}})+(?![0-9])"  # 1'234'567
    r"|[1-9][0-9]{0,2}(?: [0-9]{3}){0,5}(?: 0[0-9]{2})(?: [0-9]{3}){0,5}(?![0-9])"  # 1 050 000: no number begins with 0
)
_GROUPED_ALONE = rf"[0-9]+(?:,[0-9]+)+|[0-9]{{1,3}}(?: [0-9]{{3}})+(?![0-9])|{_GROUPED}"


def _pattern(grouped: str) -> re.Pattern[str]:
    """Return the pattern of a number, with a fraction behind it or a whole number before one."""
    return re.compile(
        rf"(?:{_SIGN})?{_CURRENCY}?(?:(?<=[$\u00a3\u20ac\u00a5\s])(?P<inner>[-\u2212]))?"
        r"(?:(?<![0-9])(?P<whole>[0-9]{1,20}) +(?=[0-9]{1,20}[/\u2044][0-9]))?"
        rf"(?<![0-9])(?<![0-9][/\u2044])(?P<digits>(?:{grouped}|[0-9]+){_DECIMAL}|(?<![0-9A-Za-z_])\.[0-9]+)"
        r"(?:[/\u2044](?P<divisor>[0-9]{1,20}(?:\.[0-9]{1,20})?)(?![0-9.]*[/\u2044]?[0-9]))?"
    )


_IN_TEXT, _ALONE = _pattern(_GROUPED), _pattern(_GROUPED_ALONE)


def final_number(text: str) -> Fraction | None:
    r"""Return the final answer of a worked solution, exactly; ``None`` where the text holds no number.

    It is the first number after the first ``####`` that one follows on its line, as in the official evaluation of
    GSM8K; else the first in the last ``\boxed{...}`` that has one; else the last number of the text. Separators of
    thousands (``1,234``, ``1,00,000``, ``1'234``, ``1 000``), signs, decimals, exponents, fractions (``3/8``,
    ``1 1/2``), currency and percent signs are read; a dash between two numbers or in a word is no sign, and 50 % is 50.
    Where the answer stands alone, after ``####`` or in a box, all commas and blanks between digits part thousands.
    """
    for pattern, written in _LATEX:
        text = pattern.sub(written, text)
    text = _VULGAR.sub(lambda fraction: f" {unicodedata.normalize('NFKC', fraction[0])}", text)
    answers = [solution.partition("\n")[0] for solution in text.split(FINAL)[1:]]
    answers += reversed(_BOXED.findall(text))
    for answer in answers:
        number = _ALONE.search(answer)
        if number is not None:
            return _value(number)
    numbers = deque(_IN_TEXT.finditer(text), maxlen=1)
    return _value(numbers[0]) if numbers else None


def _value(number: re.Match[str]) -> Fraction | None:
    digits, divisor = re.sub(rf"[,\s{_THIN}]", "", number["digits"]), number["divisor"] or "1"
    if len(digits) > DIGITS or not Fraction(divisor):
        return None
    value = Fraction(number["whole"] or 0) + Fraction(digits) / Fraction(divisor)
    return -value if number["sign"] or number["inner"] else value
