"""The blocks of which every report is built: headings, tables, figures, as Markdown and as one HTML file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamorouter.utils.lazy import lazy_names

__all__ = ["Bullets", "Heading", "Picture", "Table", "Text", "to_html", "to_markdown"]

if TYPE_CHECKING:
    from dynamorouter.report.document import Bullets, Heading, Picture, Table, Text, to_html, to_markdown
else:
    __getattr__, __dir__ = lazy_names(__name__)
