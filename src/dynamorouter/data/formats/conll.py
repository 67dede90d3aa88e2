"""Words and tags in columns, a sentence to a block of lines, as in CoNLL-2003 (Tjong Kim Sang and De Meulder)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from dynamorouter.data.formats.packed import open_text
from dynamorouter.errors import ConfigError
from dynamorouter.tasks.labels import match_label
from dynamorouter.tasks.task import Task
from dynamorouter.utils.jsonl import SkipCount, bad_row

_BLANKS = re.compile(" +")
DOCUMENT = "-DOCSTART-"
"""The word of a line that begins a document and is no word of a sentence."""


def read_columns(
    path: Path, task: Task, options: Mapping[str, Any], skip_bad: SkipCount | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the sentences with the number of their first line.

    Columns are parted by tabs, where a line has any, else by blanks. ``token_column`` and ``tag_column`` say which are
    read, counted from 0, or from -1 backwards: the first and the last by default. A line ``# ...`` before a sentence
    is a comment, unless it ends in a tag.
    """
    token, tag = _column(options, "token_column", 0), _column(options, "tag_column", -1)
    tokens: list[str] = []
    tags: list[str] = []
    first, width, fault = 0, 0, ""
    with open_text(path) as lines:
        for number, line in enumerate(chain(lines, [""]), start=1):
            written = line.strip(" \r\n")
            cells = written.split("\t") if "\t" in written else _BLANKS.split(written)
            if not written:
                if fault:
                    bad_row(f"{path}, {fault}", skip_bad)
                elif first:
                    yield first, {task.columns.text: tokens, task.columns.target: tags}
                tokens, tags, first, fault = [], [], 0, ""
                continue
            is_comment = not first and cells[0].startswith("#") and match_label(cells[-1], task.labels) is None
            if cells[0] == DOCUMENT or is_comment:
                continue
            first, width = first or number, width or len(cells)
            if len(cells) == width and all(-width <= column < width for column in (token, tag)) and width > 1:
                tokens.append(cells[token])
                tags.append(cells[tag].strip())
            elif not fault:
                fault = (
                    f"line {number}: {len(cells)} columns, not {max(width, 2)} with a word and a tag: {written[:40]!r}"
                )


def _column(options: Mapping[str, Any], name: str, default: int) -> int:
    value = options.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; give the number of a column, from 0, or -1 for the last")
    return value
