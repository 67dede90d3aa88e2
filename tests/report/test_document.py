"""A report holds what anybody wrote: it is shown as it is, in Markdown and in HTML, and never run."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from dynamorouter.report.document import Block, Bullets, Heading, Picture, Table, Text, cell_text, to_html, to_markdown


def test_blocks_are_written_safely() -> None:
    blocks: list[Block] = [Heading("A < B", 1), Text("a & b"), Table(["x", "y"], [["<b>", "1"]], "c", fold=True)]
    page = to_html(blocks, title="<t>")
    assert "<b>" not in page and "&lt;b&gt;" in page and "A &lt; B" in page and "<title>&lt;t&gt;" in page
    assert "| x | y |\n| --- | ---: |\n| &lt;b> | 1 |" in to_markdown(blocks, folder="p")
    assert "![about](p/one.svg)" in to_markdown([Picture("one", b"<svg/>", "about")], folder="p")


NASTY = (
    "<script>alert(1)</script>",
    "a|b",
    "[x](http://y.z)",
    "two\nlines",
    "\x1b[31mred\x07",
    "`code`",
    "{{ 1 + 1 }}",
)


@pytest.mark.parametrize("text", NASTY)
def test_what_anybody_wrote_is_shown_and_never_run(text: str) -> None:
    picture = Picture("p", b"<svg/>", text)
    blocks: list[Block] = [Heading(text), Text(text), Bullets([text]), Table([text, "n"], [[text, 0.5]], text), picture]
    page, lines = to_html(blocks, title=text), to_markdown(blocks).splitlines()
    for written in (page, "\n".join(lines)):
        assert "<script" not in written and "\x1b" not in written and "\x07" not in written
    assert not any("](http" in line for line in lines)
    parser = Html()
    parser.feed(page)
    shown = cell_text(text)
    assert parser.texts.count(shown) == 8  # title, heading, text, item, caption of table and picture, head, cell
    assert parser.alternatives == [shown]
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 3 and all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)


class Html(HTMLParser):
    """Keeps the texts that a browser would show, and the pictures' alternatives."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.alternatives: list[str | None] = []

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.alternatives.append(dict(attrs)["alt"])
