"""CSV and TSV: rows of cells under names, without a line that is lost between two stray quotation marks.

``quote`` says what a quotation mark is: with ``double`` it stands around cells and is doubled within them, and such a
cell may hold line ends; with ``none`` it is a character like any other. Without the option CSV is read as ``double``,
and refused where a quoted cell looks as if it had swallowed rows; TSV is read as ``none``, unless all its quotation
marks are where a program that writes ``double`` puts them.
"""

from __future__ import annotations

import csv
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from dynamorouter.data.formats.packed import open_text, packed_suffix
from dynamorouter.errors import ConfigError, DataError
from dynamorouter.utils.jsonl import SkipCount, bad_row

Quote = Literal["none", "double"]
_MOST_VALUES = 1000
_SURE_LINES = 3
_CHOICES: Mapping[Any, Quote | None] = {"none": "none", "double": "double", None: None, False: "none", True: "double"}


@dataclass(frozen=True, slots=True)
class _Line:
    """A row as it stands in the file, from line ``first`` on: its ``cells``, or what is at ``fault`` with it."""

    first: int
    text: Sequence[str]
    cells: Sequence[str] = ()
    fault: str = ""

    @property
    def last(self) -> int:
        return self.first + len(self.text) - 1


def read_table(
    path: Path, options: Mapping[str, Any], skip_bad: SkipCount | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows under the names in the first line, numbered by the line that they begin in.

    Raises:
        ConfigError: ``quote`` is none of ``none`` and ``double``.
        DataError: two columns have one name, a quoted cell looks as if it held rows, or a row, named by its line, has
            other cells than there are names.
    """
    quote, delimiter = _quote(options), _delimiter(path)
    if quote is None and delimiter == "\t":
        quote = "double" if _is_quoted(path, delimiter) else "none"
    elif quote is None:
        quote = "double"
        _check_swallowed(path, delimiter)
    names: list[str] | None = None
    for line in _lines(path, delimiter, quote):
        if line.fault:
            bad_row(f"{path}, line {line.first}: {line.fault}", None if names is None else skip_bad)
        elif names is None:
            names = _names(path, line.cells) if line.cells else None
        elif len(line.cells) == len(names):
            yield line.first, dict(zip(names, line.cells, strict=True))
        elif line.cells:
            message = f"{path}, line {line.first}: {len(line.cells)} cells under {len(names)} columns"
            if quote == "none" and any('"' in cell for cell in line.cells):
                message += f"; if quotation marks stand around cells, {_set_quote('double')}"
            bad_row(message, skip_bad)


def count_long_rows(path: Path, options: Mapping[str, Any]) -> int:
    """Return how many rows go over several lines."""
    quote, delimiter = _quote(options), _delimiter(path)
    if quote == "none" or (quote is None and delimiter == "\t"):
        return 0  # what is told to be quoted by its marks has each cell on one line
    return sum(len(line.text) > 1 for line in _lines(path, delimiter, "double"))


def _quote(options: Mapping[str, Any]) -> Quote | None:
    """Return what a quotation mark is, where the options say so."""
    value = options.get("quote")
    if value not in _CHOICES:
        raise ConfigError(f"quote is {value!r}; allowed: none (a character like others), double (around cells)")
    return _CHOICES[value]


def _set_quote(quote: Quote) -> str:
    return f"set `quote: {quote}` in the task's `sources.local`"


def _delimiter(path: Path) -> str:
    """Return what parts cells: a tab in TSV; in CSV a comma, or where the first line has none, a semicolon or tab."""
    if packed_suffix(path).startswith(".tsv"):
        return "\t"
    with open_text(path) as lines:
        head = next(lines, "")
    return next((mark for mark in ",;\t" if mark in head), ",")


def _names(path: Path, cells: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{path}, line 1: more than one column is called {', '.join(map(repr, twice))}; rename them")
    return names


class _Rereadable:
    """The lines of a file; those that were read since ``begin`` can be read again.

    Attributes:
        taken: the lines since ``begin``.
    """

    def __init__(self, lines: TextIO) -> None:
        self._lines = lines
        self._again: deque[str] = deque()
        self.taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.taken.append(line)
        return line

    def begin(self, *, after: int | None = None) -> None:
        """Begin a row, and read again what was taken beyond ``after`` lines."""
        if after is not None:
            self._again.extendleft(reversed(self.taken[after:]))
        self.taken = []


def _lines(path: Path, delimiter: str, quote: Quote) -> Iterator[_Line]:
    """Yield all rows; of one whose quotation mark is never rightly closed the first line alone is at fault."""
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quote == "double" else csv.QUOTE_NONE
    first = 1
    with open_text(path) as handle:
        lines = _Rereadable(handle)
        reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                fault = str(error)
                if len(lines.taken) > 1 or '"' in lines.taken[0]:
                    remedy = f"{_set_quote('none')} if it is a character like others"
                    fault = f"a quotation mark that is not closed rightly ({error}); {remedy}"
                yield _Line(first, lines.taken[:1], fault=fault)
                first += 1
                lines.begin(after=1)
                continue
            if cells is None:
                return
            yield _Line(first, lines.taken, cells)
            first += len(lines.taken)
            lines.begin()


def _is_quoted(path: Path, delimiter: str) -> bool:
    """Tell whether every quotation mark of a file is where a writer of quoted cells puts it, and one shows it."""
    shown = False
    for number, line in enumerate(_lines(path, delimiter, "none")):
        marked = [cell for cell in line.cells if '"' in cell]
        for cell in marked:
            inside = cell[1:-1]
            if len(cell) < 2 or cell[0] != '"' or cell[-1] != '"' or '"' in inside.replace('""', ""):
                return False
            shown = shown or '"' in inside
        shown = shown or (number == 0 and len(marked) == len(line.cells) > 0)
    return shown


def _check_swallowed(path: Path, delimiter: str) -> None:
    """Refuse a file in which a quoted cell over several lines holds what looks like rows.

    A line of such a cell does where it has as many cells as there are columns, and one of them is what another row has
    in that column; or where that many cells are on each of several lines in a row.
    """
    columns: list[set[str]] = []
    long_rows: list[_Line] = []
    for line in _lines(path, delimiter, "double"):
        if not columns:
            columns = [set() for _ in line.cells]
        elif len(line.text) > 1:
            long_rows.append(line)
        elif len(line.cells) == len(columns):
            for values, cell in zip(columns, line.cells, strict=True):
                if cell and len(values) < _MOST_VALUES:
                    values.add(cell)
    for row in long_rows:
        if _holds_rows(row, columns, delimiter):
            raise DataError(
                f"{path}, lines {row.first} to {row.last}: one row of {len(row.text)} lines, between two quotation "
                f"marks, which holds lines that look like rows; {_set_quote('none')} if quotation marks are "
                f"characters there, or {_set_quote('double')} if such cells are meant"
            )


def _holds_rows(row: _Line, columns: Sequence[set[str]], delimiter: str) -> bool:
    sure = 0
    for text in row.text[:-1]:
        cells = text.rstrip("\r\n").split(delimiter)
        like_a_row = len(cells) == len(columns) > 1
        if like_a_row and any(cell in values for cell, values in zip(cells, columns, strict=True)):
            return True
        sure = sure + 1 if like_a_row else 0
        if sure >= _SURE_LINES:
            return True
    return False
