"""The laws of data sources."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, ClassVar

from dynamorouter.data.sources import SPLITS, Row, Source, sources
from dynamorouter.errors import DynamoRouterError
from dynamorouter.tasks.task import Task
from dynamorouter.testing.contract import Contract, require

ROWS = 50
"""Rows of a split that are looked at."""


class SourceContract(Contract):
    """The laws of data sources.

    Attributes:
        source: the class.
        task: a task that it has rows of.
        options: of the source, as they stand in the task's ``sources``.
    """

    source: ClassVar[type[Source]]
    task: ClassVar[Task]
    options: ClassVar[Mapping[str, Any]] = {}

    def rows(self, split: str) -> list[Row]:
        """Return the first rows of a split."""
        return list(islice(self.source().rows(self.task, split, self.options, skip_bad=None), ROWS))

    def test_is_what_the_registry_takes(self) -> None:
        """The class has all that a source has."""
        require(not sources.fault(self.source), sources.fault(self.source))

    def test_it_has_some_of_the_splits(self) -> None:
        """``splits`` names those that there are, and train is among them."""
        splits = self.source().splits(self.task, self.options)
        require("train" in splits and set(splits) <= set(SPLITS), f"splits are {splits}, of {SPLITS}")

    def test_rows_are_numbered_and_have_columns_by_name(self) -> None:
        """Rows are numbered upwards from 1, and each is a mapping from names of columns."""
        for split in self.source().splits(self.task, self.options):
            rows = self.rows(split)
            numbers = [number for number, _ in rows]
            require(bool(rows) and numbers[0] >= 1, f"split {split} has no rows, or counts them from below 1")
            require(numbers == sorted(set(numbers)), f"rows of {split} are not numbered upwards, each once")
            require(all(isinstance(key, str) for _, row in rows for key in row), f"a column of {split} has no name")

    def test_the_same_rows_come_again(self) -> None:
        """Reading twice gives the same rows and the same fingerprint, which is not empty."""
        require(self.rows("train") == self.rows("train"), "a second reading gives other rows")
        first, second = (self.source().fingerprint(self.task, self.options) for _ in range(2))
        require(bool(first) and first == second, f"fingerprints are {first!r} and {second!r}")

    def test_a_split_that_is_not_there_is_an_error_of_ours(self) -> None:
        """A user reads what is wrong, and no traceback."""
        try:
            list(self.source().rows(self.task, "no-such-split", self.options, skip_bad=None))
        except DynamoRouterError:
            return
        raise AssertionError("a split that is not there is read without a DataError")
