"""Whole runs over a tiny random base: its configuration, its data in native columns, and the command line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from dynamorouter.cli import main as cli
from dynamorouter.config.compose import compose
from dynamorouter.config.schema import Config
from dynamorouter.runs import phases
from dynamorouter.runs.run import open_run
from support.builders import ASK, MOOD, NAMES, make_rows, write_tiny

TASKS = {
    "mood": "head: classification\ncolumns: {text: text, target: label}\nlabels: [bad, good]\nmetrics: [accuracy]\n",
    "names": "head: tags\ncolumns: {text: tokens, target: tags}\nlabels: [O, B-PER, I-PER, B-LOC, I-LOC]\n"
    "metrics: [entity_f1]\n",
    "ask": "head: span\ncolumns: {text: question, pair: context, target: answers}\nmetrics: [squad_f1, squad_em]\n",
}
RECIPE = """# @package _global_
# Tiny.
defaults:
  - override /base: tiny
  - override /data: local
  - override /router: mlp
  - override /task: [mood, names, ask]

recipe: tiny
experts: {rank: 2, alpha: 8, dropout: 0.1, trunk_depth: 2, train_rows: 24, epochs: 2, batch_rows: 8,
  tokens_per_batch: 256, learning_rate: 0.01, checkpoint_every: 1}
router: {hidden: 16, epochs: 10, batch_rows: 8, learning_rate: 0.01, train_rows: 16}
joint: {enabled: true, train_rows: 12, epochs: 1, batch_rows: 9}
evaluation: {select_rows: 8, calibrate_rows: 8, report_rows: 12, bootstrap: 20}
device: cpu
"""


def write_rows(root: Path, *, train: int = 60, validation: int = 16, test: int = 12) -> Path:
    """Write rows of the three tiny tasks in native columns as ``root/TASK/SPLIT.jsonl``."""
    starts = {"train": (0, train), "validation": (1000, validation), "test": (2000, test)}
    for task in (MOOD, NAMES, ASK):
        for split, (start, count) in starts.items():
            path = root / task.name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows: list[dict[str, Any]] = []
            for i, row in enumerate(make_rows(task, count, start=start)):
                text = f"{row.text} {'acme ' * (i % 7)}{'team ' * (i // 7)}".strip()  # no two rows alike
                if task is MOOD:
                    rows.append({"text": text, "label": row.target})
                elif task is NAMES:
                    tags = [*row.target, *["O"] * (len(text.split()) - len(row.target))]
                    rows.append({"tokens": text.split(), "tags": tags})
                else:
                    assert isinstance(row.target, dict)
                    answers = {"text": row.target["texts"], "answer_start": row.target["starts"]}
                    rows.append({"question": text, "context": row.pair, "answers": answers})
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return root


def write_conf(folder: Path) -> Path:
    """Write a folder laid out like ``conf/``, with a recipe ``tiny`` over a tiny BERT and another base ``other``."""
    for name, place, kind in (("tiny", "bert", "bert"), ("other", "roberta", "roberta")):
        model = write_tiny(folder / "models" / place, kind)
        path = folder / "base" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"name: {name}\npath: {model}\npooling: mean\n", encoding="utf-8")
    (folder / "task").mkdir()
    for name, text in TASKS.items():
        more = "max_tokens: 32\nstride: 8\nsources: {local: {}}\n"
        (folder / "task" / f"{name}.yaml").write_text(f"# @package task.{name}\nname: {name}\n{text}{more}")
    (folder / "recipe").mkdir()
    (folder / "recipe" / "tiny.yaml").write_text(RECIPE)
    return folder


def words(home: Path, *more: str) -> list[str]:
    """Return the command line's recipe and overrides over what ``write_conf`` and ``write_rows`` wrote in ``home``."""
    return ["tiny", f"search_path=[{home / 'conf'}]", f"data.root={home / 'rows'}", *more]


def settings(home: Path, *more: str) -> Config:
    """Return the same as settings."""
    recipe, *overrides = words(home, *more)
    return compose(recipe, overrides)


def finish(config: Config, out: Path) -> Path:
    """Do a whole run in a new folder and return the folder."""
    open_run(config, out, resume=False)
    phases.run(config, out)
    return out


def call(*line: str | Path) -> Any:
    """Run the command line in this process."""
    return CliRunner().invoke(cli.app, [str(word) for word in line])


def refused(result: Any, *said: str) -> str:
    """Check that a command ended with one clean message that says certain things, and return it."""
    error = str(result.stderr)
    shown = "\n".join(line for line in error.splitlines() if line.startswith("error: "))
    assert result.exit_code == 2, result.output
    assert shown.count("error: ") == 1 and "Traceback" not in error
    for piece in said:
        assert piece in error, error
    return error


def weights(folder: Path) -> dict[str, str]:
    """Return the hash of every safetensors file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.safetensors"))
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    """Write objects, or strings and bytes as they are, one per line."""
    raw = [
        row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path
