"""The whole exploration: figures by task, the answers to the usual questions in words, and the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dynamorouter.errors import ConfigError
from dynamorouter.explore.duplicates import duplicates
from dynamorouter.explore.lengths import Tokenizer, balance, summary, truncation, words
from dynamorouter.explore.relations import length_classifier, length_relations
from dynamorouter.explore.rows import TaskRows, read_rows
from dynamorouter.explore.vocabulary import vocabulary
from dynamorouter.report.document import Picture, to_html, to_markdown
from dynamorouter.tasks.kinds import head_kind
from dynamorouter.tasks.task import Task
from dynamorouter.utils.files import write_json, writing

WEAK, STRONG = 0.3, 0.6
"""Absolute correlations below and above which a relation is called weak and strong."""


@dataclass(frozen=True, slots=True)
class Finding:
    """An answer in words.

    Attributes:
        task: whose rows.
        question: what was asked.
        words: the answer, its figures included.
    """

    task: str
    question: str
    words: str


@dataclass(frozen=True, slots=True)
class Exploration:
    """Everything that was found.

    Attributes:
        figures: plain JSON values: ``tasks``, ``duplicates``, ``vocabulary``, ``seed``.
        answers: in words.
        rows: what the pictures are drawn from.
    """

    figures: Mapping[str, Any]
    answers: tuple[Finding, ...]
    rows: tuple[TaskRows, ...]


def explore(
    tasks: Sequence[Task],
    source: str,
    options: Mapping[str, Any] | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    max_tokens: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Exploration:
    """Look at tasks.

    Args:
        tasks: one or more, of different names.
        source: name of the source for all of them.
        options: its options over the tasks' own, such as ``root``.
        tokenizer: what truncation is counted by; words where it is ``None``.
        max_tokens: the window; each task's own by default.
        limit: most rows per split.
        seed: of draws, intervals and hash functions.
        say: called with a line about each step.

    Raises:
        ConfigError: there are no tasks, or a name occurs twice.
        DataError: a task has no rows.
    """
    names = [task.name for task in tasks]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"explore needs one or more tasks of different names, got {', '.join(names) or 'none'}")
    all_rows: list[TaskRows] = []
    by_task = {}
    for task in tasks:
        rows = read_rows(task, source, options, limit=limit, seed=seed)
        all_rows.append(rows)
        say(f"{task.name}: {', '.join(f'{len(records)} {split}' for split, records in rows.splits.items())}")
        by_task[task.name] = {
            "rows": {split: len(records) for split, records in rows.splits.items()},
            "columns": _columns(task),
            "problems": dict(rows.problems),
            "balance": balance(rows),
            "words": {part: summary(values) for part, values in words(rows).items()},
            "truncation": truncation(rows, tokenizer, max_tokens=max_tokens),
            "length_relations": length_relations(rows, seed=seed),
            "length_classifier": length_classifier(rows, seed=seed),
        }
    say("duplicates and vocabulary")
    figures = {
        "seed": seed,
        "limit": limit,
        "tasks": by_task,
        "duplicates": duplicates(all_rows, seed=seed),
        "vocabulary": vocabulary(all_rows),
    }
    return Exploration(figures, tuple(answers(figures)), tuple(all_rows))


def answers(figures: Mapping[str, Any]) -> list[Finding]:
    """Answer in words, from figures alone: is it balanced, does length tell the class, do lengths go together?"""
    findings = []
    for name, figures_of in figures["tasks"].items():
        if figures_of["balance"] is not None:
            findings.append(Finding(name, "Are the classes balanced?", _balanced(figures_of["balance"])))
        if figures_of["length_classifier"] is not None:
            findings.append(Finding(name, "Does length predict the class?", _predicts(figures_of["length_classifier"])))
        for pair, relation in figures_of["length_relations"].items():
            first, second = (_named(part, figures_of["columns"]) for part in pair.split("/"))
            findings.append(Finding(name, f"Do rows of a longer {first} have a longer {second}?", _together(relation)))
        findings.append(Finding(name, "Do held-out rows stand in train?", _leaks(figures["duplicates"]["tasks"][name])))
    return findings


def _columns(task: Task) -> dict[str, str | None]:
    """Return what the parts of a row are called; of SQuAD-style answers the first is looked at."""
    target = head_kind(task.head).target_name or task.columns.target
    return {"text": task.columns.text, "pair": task.columns.pair, "target": target}


def _named(part: str, columns: Mapping[str, str]) -> str:
    return f"{columns['text']} and {columns['pair']}" if part == "input" else columns[part]


def _balanced(figures: Mapping[str, Any]) -> str:
    shares = figures["shares"]
    least, most = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
    word = {"balanced": "Yes", "nearly balanced": "Nearly", "not balanced": "No"}[figures["verdict"]]
    ratio = "the smallest does not occur" if figures["ratio"] is None else f"ratio {figures['ratio']:.2f}"
    return f"{word}: from {shares[least]:.1%} ({least}) to {shares[most]:.1%} ({most}), {ratio}."


def _predicts(figures: Mapping[str, Any]) -> str:
    low, high = figures["gain"]["ci95"]
    word = "Yes" if low > 0 else "No sign of it" if high >= 0 else "No, it misleads"
    gain = figures["gain"]["value"]
    size = "" if word != "Yes" else ", a little" if gain < 0.1 else ", clearly"
    return (
        f"{word}{size}: accuracy {figures['accuracy']['value']:.3f} from lengths alone, {figures['majority']:.3f} for "
        f"always the commonest class; gain {gain:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}, "
        f"on {figures['n']} rows."
    )


def _together(relation: Mapping[str, Any]) -> str:
    if relation["pearson"] is None:
        return f"It cannot be told: no spread in length, or too few rows ({relation['n']})."
    parts = []
    for name, title in (("pearson", "Pearson"), ("spearman", "Spearman")):
        low, high = relation[name]["ci95"]
        parts.append(f"{title} {relation[name]['value']:.3f}, 95 % interval {low:.3f} to {high:.3f}")
    low, high = relation["spearman"]["ci95"]
    size = abs(relation["spearman"]["value"])
    strength = "weakly" if size < WEAK else "moderately" if size < STRONG else "strongly"
    word = "No sign of it" if low <= 0 <= high else f"Yes, {strength}" if low > 0 else f"No, {strength} the reverse"
    return f"{word}: {'; '.join(parts)}, over {relation['n']} rows."


def _leaks(counts_by_split: Mapping[str, Mapping[str, int]]) -> str:
    held_out = {split: counts for split, counts in counts_by_split.items() if "in_train" in counts}
    if not held_out:
        return "There are no held-out rows."
    parts = [
        f"{counts['in_train']} of {counts['rows']} {split} rows do, {counts['near_in_train']} counting near-duplicates"
        for split, counts in held_out.items()
    ]
    return "; ".join(parts) + "."


def write(survey: Exploration, folder: Path, pictures: Sequence[Picture] = ()) -> None:
    """Write ``exploration.json``, and the same as ``exploration.md`` with its pictures and as ``exploration.html``.

    Args:
        survey: what to write.
        folder: where to.
        pictures: what ``explore.figures.draw`` drew.
    """
    from dynamorouter.explore.page import page

    answers = [asdict(answer) for answer in survey.answers]
    write_json(folder / "exploration.json", {**survey.figures, "answers": answers})
    blocks = page(survey.figures, [f"{a.task}: {a.question} {a.words}" for a in survey.answers], pictures)
    files = {f"{picture.name}.{picture.form}": picture.image for picture in pictures}
    files["exploration.md"] = to_markdown(blocks).encode()
    files["exploration.html"] = to_html(blocks, title="Exploration").encode()
    for name, content in files.items():
        with writing(folder / name) as temporary:
            temporary.write_bytes(content)
