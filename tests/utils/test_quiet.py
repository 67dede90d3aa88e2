"""One message of another package is silenced where it arises, and no other."""

from __future__ import annotations

import logging
import warnings

import pytest

from dynamorouter.utils.quiet import without_log, without_warning


def test_one_warning_is_dropped_while_the_block_runs() -> None:
    with without_warning(RuntimeWarning, "so many steps"):
        warnings.warn("so many steps (3)", RuntimeWarning, stacklevel=1)
        with pytest.warns(UserWarning, match="so many"):
            warnings.warn("so many steps", UserWarning, stacklevel=1)
        with pytest.warns(RuntimeWarning, match="too few"):
            warnings.warn("too few rows", RuntimeWarning, stacklevel=1)
    with pytest.warns(RuntimeWarning, match="so many"):
        warnings.warn("so many steps", RuntimeWarning, stacklevel=1)


def test_one_record_is_dropped_while_the_block_runs(caplog: pytest.LogCaptureFixture) -> None:
    source = logging.getLogger("tests.quiet")
    with without_log("tests.quiet", "LOAD"):
        source.warning("a LOAD REPORT of %s", "bert")
        source.warning("weights are missing")
    source.warning("a LOAD REPORT")
    assert [record.getMessage() for record in caplog.records] == ["weights are missing", "a LOAD REPORT"]
