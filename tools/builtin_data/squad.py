"""Built-in rows of the extractive QA task: invented encyclopaedic paragraphs with hand-written questions.

Each core is one paragraph and its questions. A core is widened by exchanging names, places and years consistently in
the paragraph, the questions and the answers, and by setting the paragraph beside another of the same split, so that
answers stand at many positions. The splits use different cores.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

SEED = 20261
SIZES = {"train": 760, "validation": 120}
FILES = ("squad_history.txt", "squad_science.txt", "squad_places.txt", "squad_culture.txt", "squad_society.txt")
JOINED = 0.15
"""Share of rows whose context is two paragraphs long."""
SHORT = 0.35
"""Chance that a context of one paragraph is cut to a few sentences around the answer."""

NAMES = {
    "man": ("Viktor Almgren", "Henri Dubosc", "Carlo Massari", "Peter Langholm", "Josef Wiesner", "Samuel Okoro",
            "Arthur Penrose", "Tomas Brezina", "Luis Cardenal", "Ivan Markov", "George Tilbury", "Daniel Roth",
            "Kenji Arata", "Oskar Blom", "Rashid Karam", "William Ashby"),
    "woman": ("Eleanor Voss", "Anna Lindqvist", "Rosa Marchetti", "Ines Valdera", "Helga Brandt", "Miriam Katz",
              "Alice Thornbury", "Sofia Radek", "Jeanne Morel", "Aiko Tanabe", "Leila Haddad", "Catherine Doyle"),
    "town": ("Westermark", "San Rufino", "Kolberg", "Ardeshir", "Millbrook", "Villanova", "Hartenau", "Osterby",
             "Cartabella", "Lomnice", "Dunmore", "Karadag"),
    "river": ("Tarn", "Velka", "Ossa", "Lune", "Merrow", "Zarit", "Nerva", "Isel", "Orle", "Kamba"),
    "company": ("Northgate", "Halcyon", "Brightwater", "Caldera", "Orwell", "Stella", "Ostwind", "Pallas"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Core:
    """One paragraph, its questions as (question, answer, words before the answer), and what may be exchanged in it."""

    title: str
    paragraph: str
    questions: tuple[tuple[str, str, str], ...]
    swaps: tuple[tuple[str, str], ...]
    shifts_years: bool
    split: str


def _parse(block: str) -> Core:
    head, paragraph, *lines = block.strip().splitlines()
    title, _, options = head.partition(" | ")
    questions = []
    for line in lines:
        question, answer = line.removeprefix("? ").split(" => ")
        before, bar, text = answer.rpartition("|")
        questions.append((question, text if bar else answer, before))
    parts = [part.strip() for part in options.split(";") if part.strip()]
    swaps = tuple((kind, name) for kind, colon, name in (part.partition(":") for part in parts) if colon)
    split = "validation" if title.startswith("!") else "train"
    return Core(title.removeprefix("!").strip(), paragraph, tuple(questions), swaps, "years" in parts, split)


@cache
def cores(split: str) -> tuple[Core, ...]:
    """Return the hand-written cores of ``split``."""
    found: list[Core] = []
    for name in FILES:
        text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
        text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
        found.extend(_parse(block) for block in re.split(r"^==", text, flags=re.MULTILINE) if block.strip())
    return tuple(core for core in found if core.split == split)


def _exchange(core: Core, rng: random.Random) -> dict[str, str]:
    """Return the words to replace in a variant of ``core`` and what stands for each."""
    table: dict[str, str] = {}
    for kind, old in core.swaps:
        free = [name for name in NAMES.get(kind, ()) if name not in table.values()]
        if not free or rng.random() < 0.2:
            continue
        new = rng.choice(free)
        if kind in {"man", "woman"} and " " in old:
            table[old.split()[-1]] = new.split()[-1]
            table[old] = new
        else:
            table[old] = new.split()[0] if kind in {"man", "woman"} else new
    if core.shifts_years:
        shift = rng.randint(-9, 9)
        years = set(re.findall(r"\b1\d{3}\b(?! BC)", core.paragraph))
        table.update({year: str(int(year) + shift) for year in years})
    return table


def _apply(text: str, table: dict[str, str]) -> str:
    if not table:
        return text
    longest = sorted(table, key=len, reverse=True)
    return re.sub("|".join(rf"(?<![\w,]){re.escape(old)}\b" for old in longest), lambda m: table[m[0]], text)


def _around(paragraph: str, start: int, end: int, rng: random.Random) -> tuple[str, int]:
    """Cut a paragraph to the sentences that hold the answer, and at times one more on a side; and move its offset."""
    edges = [0, *(match.end() for match in re.finditer(r"(?<=[.!?])\s+(?=[A-Z])", paragraph)), len(paragraph)]
    first = max(i for i, edge in enumerate(edges) if edge <= start)
    last = min(i for i, edge in enumerate(edges) if edge >= end)
    first = max(0, first - rng.randint(0, 1))
    last = min(len(edges) - 1, last + rng.randint(0, 1))
    return paragraph[edges[first] : edges[last]].rstrip(), start - edges[first]


def _row(core: Core, index: int, other: Core | None, rng: random.Random) -> dict[str, object]:
    """Return one row: question ``index`` of a fresh variant of ``core``, beside a paragraph of ``other`` if given."""
    table = _exchange(core, rng)
    question, answer, before = (_apply(text, table) for text in core.questions[index])
    paragraph = _apply(core.paragraph, table)
    start = paragraph.find(before + answer) + len(before)
    context = paragraph
    if other is not None:
        neighbour = _apply(other.paragraph, _exchange(other, rng))
        if rng.random() < 0.5:
            context = f"{paragraph} {neighbour}"
        else:
            context, start = f"{neighbour} {paragraph}", start + len(neighbour) + 1
    elif rng.random() < SHORT:
        context, start = _around(paragraph, start, start + len(answer), rng)
    return {"title": _apply(core.title, table), "context": context, "question": question,
            "answers": {"text": [answer], "answer_start": [start]}}  # fmt: skip


def _order(split: str, rng: random.Random) -> Iterator[tuple[Core, int]]:
    """Yield every question once per round, in a fresh order each round."""
    everything = [(core, i) for core in cores(split) for i in range(len(core.questions))]
    while True:
        rng.shuffle(everything)
        yield from everything


def rows(split: str) -> list[dict[str, object]]:
    """Return the rows of ``split`` ("train" or "validation"): id, title, context, question and answers.

    ``answers`` is ``{"text": [answer], "answer_start": [offset]}``; offsets count characters of the context from 0.

    Raises:
        ValueError: when ``split`` is neither.
    """
    if split not in SIZES:
        raise ValueError(f"the built-in data has no split {split!r}; allowed: {sorted(SIZES)}")
    rng = random.Random(f"{SEED}-{split}")
    pool = cores(split)
    seen: set[str] = set()
    found: list[dict[str, object]] = []
    for core, index in _order(split, rng):
        other = rng.choice([one for one in pool if one is not core]) if rng.random() < JOINED else None
        row = _row(core, index, other, rng)
        text = f"{row['question']} {row['context']}".lower()
        if text not in seen:
            seen.add(text)
            found.append({"id": f"builtin-squad-{split}-{len(found):04d}", **row})
        if len(found) == SIZES[split]:
            break
    return found
