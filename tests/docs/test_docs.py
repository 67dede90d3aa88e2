"""The documented Python examples run as they are written, over a tiny system in place of the quickstart's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dynamorouter.system.system import System

ROOT = Path(__file__).parents[2]
NEW = "System.new("
"""In examples that begin without a system: tests/system/test_door.py runs them."""


@pytest.mark.parametrize("page", ["README.md", "docs/python.md", "docs/merging.md"])
def test_python_examples_run(page: str, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if NEW not in block]
    assert blocks
    system = finished / "system"
    first = System.load(system).names[0]
    for block in blocks:
        code = block.replace("runs/quickstart/system", str(system)).replace('"ag_news"', repr(first))
        exec(compile(code, page, "exec"), {})
    said = capsys.readouterr().out
    assert any(name in said for name in System.load(system).names)


@pytest.mark.parametrize("page", sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")))
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in link:
            assert ((ROOT / page).parent / link).exists(), f"{page} links to {link}"
