"""A report as blocks, written as Markdown or as one HTML file that asks nothing of the network."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading of level 1 to 3."""

    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of short statements."""

    items: Sequence[str]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under heads; the first column is text, the others are aligned to the right.

    Attributes:
        fold: hidden behind its caption in HTML, since it is long.
        words: all columns are text, aligned to the left, and wrap.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    fold: bool = False
    words: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture in SVG.

    Attributes:
        name: of its file, without ending.
        svg: its bytes.
        about: what it shows, also for readers that do not see it.
    """

    name: str
    svg: bytes
    about: str


Block = Heading | Text | Bullets | Table | Picture
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.3rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .15rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.words th, .words td { text-align: left; white-space: normal; vertical-align: top; }
.wide { overflow-x: auto; }
figure { margin: 1rem 0; } figcaption, caption { font-size: .85rem; color: #444; text-align: left; }
img { max-width: 100%; height: auto; }
summary { cursor: pointer; }
@media print { body { font-size: 10pt; max-width: none; margin: 0; } table { font-size: 7pt; }
  h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; } .wide { overflow: visible; } }
"""


def to_markdown(blocks: Sequence[Block], *, folder: str) -> str:
    """Return the report as Markdown; pictures are files in ``folder``."""
    parts = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"{'#' * block.level} {block.text}")
        elif isinstance(block, Text):
            parts.append(block.text)
        elif isinstance(block, Bullets):
            parts.append("\n".join(f"- {item}" for item in block.items))
        elif isinstance(block, Table):
            parts.append(table_lines(block))
        else:
            parts.append(f"![{block.about}]({folder}/{block.name}.svg)")
    return "\n\n".join(parts) + "\n"


def table_lines(table: Table) -> str:
    """Return a table as Markdown."""
    bars = ["---"] + ["---" if table.words else "---:"] * (len(table.heads) - 1)
    lines = ["| " + " | ".join(row) + " |" for row in (list(table.heads), bars, *map(list, table.rows))]
    return "\n".join(([table.caption, ""] if table.caption else []) + lines)


def to_html(blocks: Sequence[Block], *, title: str) -> str:
    """Return the report as one HTML file with everything in it."""
    body = "\n".join(_html(block) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Bullets):
        return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in block.items) + "</ul>"
    if isinstance(block, Picture):
        data = base64.b64encode(block.svg).decode("ascii")
        about = html.escape(block.about)
        image = f'<img alt="{about}" src="data:image/svg+xml;base64,{data}">'
        return f"<figure>{image}<figcaption>{about}</figcaption></figure>"
    heads = "".join(f"<th>{html.escape(head)}</th>" for head in block.heads)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in block.rows)
    caption = f"<caption>{html.escape(block.caption)}</caption>" if block.caption and not block.fold else ""
    look = ' class="words"' if block.words else ""
    table = (
        f'<div class="wide"><table{look}>{caption}<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )
    return f"<details><summary>{html.escape(block.caption)}</summary>{table}</details>" if block.fold else table
