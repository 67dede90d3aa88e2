"""A report as blocks, written as Markdown or as one HTML file that asks nothing of the network.

What a block holds may come from anybody's data: control characters never leave ``cell_text``, and markup in texts,
labels and names is shown, never run.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from jinja2 import Environment

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_MARKDOWN = (("|", "\\|"), ("<", "&lt;"), ("](", "]\\("))


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading of level 1 to 3."""

    kind: ClassVar[str] = "heading"
    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of short statements."""

    kind: ClassVar[str] = "bullets"
    items: Sequence[str]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under heads; the first column is text, the others are aligned to the right.

    Attributes:
        heads: of the columns.
        rows: cells, plain values as ``cell_text`` takes them.
        caption: above the table.
        fold: hidden behind its caption in HTML, since it is long.
        words: all columns are text, aligned to the left, and wrap.
        digits: after the point of a float.
    """

    kind: ClassVar[str] = "table"
    heads: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    fold: bool = False
    words: bool = False
    digits: int = 4

    @property
    def cells(self) -> list[list[str]]:
        """The rows as text."""
        return [[cell_text(cell, digits=self.digits) for cell in row] for row in self.rows]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture.

    Attributes:
        name: of its file, without ending.
        image: its bytes.
        about: what it shows, also for readers that do not see it.
        form: ``svg`` or ``png``, its file's ending.
    """

    kind: ClassVar[str] = "picture"
    name: str
    image: bytes
    about: str
    form: str = "svg"

    @property
    def source(self) -> str:
        """The picture as an address that holds it."""
        media = "image/svg+xml" if self.form == "svg" else f"image/{self.form}"
        return f"data:{media};base64,{base64.b64encode(self.image).decode('ascii')}"


Block = Heading | Text | Bullets | Table | Picture


def cell_text(value: object, *, digits: int = 4) -> str:
    """Return a value in one line: floats to ``digits``, a dash for ``None``, control characters made visible."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", " ".join(str(value).splitlines()))


def to_markdown(blocks: Sequence[Block], *, folder: str = "") -> str:
    """Return the report as Markdown; pictures are files in ``folder``, or beside it."""
    return _templates().get_template("page.md.j2").render(blocks=blocks, folder=f"{folder}/" if folder else "")


def table_markdown(heads: Sequence[str], rows: Sequence[Sequence[object]], *, digits: int = 4) -> str:
    """Return a table alone as Markdown, all columns aligned to the left."""
    return to_markdown([Table(heads, rows, words=True, digits=digits)])


def to_html(blocks: Sequence[Block], *, title: str) -> str:
    """Return the report as one HTML file with everything in it."""
    return _templates().get_template("page.html.j2").render(blocks=blocks, title=title)


@cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dynamorouter.report"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"line": cell_text, "markdown": _markdown}
    return environment


def _markdown(text: str) -> str:
    """Return a line in which neither a cell ends nor a tag or link begins."""
    line = cell_text(text)
    for mark, escaped in _MARKDOWN:
        line = line.replace(mark, escaped)
    return line
