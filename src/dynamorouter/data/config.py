"""Where rows come from, and which are kept."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import field_validator, model_validator

from dynamorouter.data.sources import sources
from dynamorouter.errors import one_of, suggest
from dynamorouter.utils.options import Count, Later, Options, Share, Size

WhenShort = Literal["shrink", "overlap", "fail"]
Leaks = Literal["drop", "fail"]
UnknownLabels = Literal["drop", "fail"]


class FilterConfig(Options):
    """Which rows are dropped before splitting, empty ones and duplicates always; all are counted and reported."""

    max_chars: Count = 20_000
    """Longest text in characters."""
    max_words: Count | None = None
    """Longest text and pair together, in words; ``null`` for any."""
    skip_bad: bool = False
    """Leave broken rows, and rows that can never be scored, out with a count instead of stopping."""
    unknown_labels: Annotated[UnknownLabels, Later()] = "fail"
    """Rows whose label is none of the task's: stop, naming the labels, or drop the rows and count them."""


class AugmentConfig(Options):
    """Light augmentation, of train rows only."""

    copies: Size = 0
    """Noisy copies made of each train row; 0 switches it off."""
    dropout: Share = 0.05
    """Chance of each word to be dropped."""
    swap: Share = 0.05
    """Chance of each word to change places with the next."""
    noise: Share = 0.5
    """Chance of each text to lose its capitals or its final punctuation."""


class RowsConfig(Options):
    """Which rows are kept, and what they are made into."""

    filters: FilterConfig = FilterConfig()
    """Which rows are dropped."""
    leaks: Leaks = "drop"
    """What happens when a validation row is in train: drop it from train and count it, or stop."""
    when_short: WhenShort = "shrink"
    """With too few train rows: shrink all parts, let router and joint rows overlap with the experts', or stop."""
    augment: AugmentConfig = AugmentConfig()
    """Augmentation of train rows."""


class DataConfig(RowsConfig):
    """Where rows come from and which are kept."""

    source: str = "builtin"
    """``builtin`` rows, ``local`` files of any format, the Hugging Face ``hub``, or a source of a plugin."""
    root: str | None = None
    """Folder with one folder per task, for ``source: local``."""

    @field_validator("source")
    @classmethod
    def _known_source(cls, name: str) -> str:
        if name not in sources:
            raise ValueError(f"got {name!r}, which is no source{suggest(name, sources)}; allowed: {one_of(sources)}")
        return name

    @model_validator(mode="after")
    def _root(self) -> Self:
        if self.source == "local" and not self.root:
            raise ValueError("data.source is 'local' but data.root is not set; add data.root=FOLDER")
        return self
