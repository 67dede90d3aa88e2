"""The page on merging says what the registry says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_are_those_of_the_registry_and_the_results() -> None:
    spec = importlib.util.spec_from_file_location("merge_page", ROOT / "tools" / "merge_page.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    text = tool.PAGE.read_text(encoding="utf-8")
    assert tool.page(text) == text, "run: python tools/merge_page.py"


def test_the_tests_that_the_page_names_exist() -> None:
    text = (ROOT / "docs" / "merging.md").read_text(encoding="utf-8")
    tests = (ROOT / "tests" / "merging" / "test_peers.py").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)` \|", text)
    assert len(named) >= 7
    assert all(f"def {name}(" in tests for name in named)
