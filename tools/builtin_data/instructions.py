"""Built-in instructions with inputs and answers, from a bare request to several clauses in one sentence.

What they are about stands in ``instructions_facts.txt``, how they are put in ``instructions_frames.txt``, both written
by hand. A fact and its frames are one core; facts are split first and put into frames afterwards, so that no fact is
in both splits. Each frame belongs to one of three levels of syntax, drawn alike often; the level is not in the rows.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from types import MappingProxyType

from builtin_data._cores import check_split, normalise
from builtin_data._sections import read_sections, split_sections

FACTS, FRAMES = "instructions_facts.txt", "instructions_frames.txt"
SEED = 20261121
LEVELS = 3
ROWS: Mapping[str, int] = MappingProxyType({"train": 900, "validation": 150})
VALIDATION_EVERY = 5
KIN = ("brother", "neighbour", "grandmother", "colleague", "cousin", "nephew", "landlady", "best friend")
_NUMBERS = (range(3, 26), range(30, 100))
PEOPLE = ("Mira", "Jonas", "Tariq", "Elena", "Ruth", "Pavel", "Noor", "Anton", "Greta", "Samir")


def facts(split: str) -> dict[str, list[str]]:
    """Return the facts of one split by kind.

    Raises:
        ValueError: if ``split`` is neither ``train`` nor ``validation``.
    """
    return split_sections(FACTS, split, SEED, every=VALIDATION_EVERY)


def _values(kind: str, fact: str, rng: random.Random) -> dict[str, str]:
    """Return what the slots of a frame stand for; a slot in capitals begins with one."""
    parts = fact.split(" | ")
    values = dict(zip("abcdef", parts, strict=False)) | {"kin": rng.choice(KIN), "who": rng.choice(PEOPLE)}
    if kind == "steps":
        steps = parts[1].split("; ")
        values["list"] = "/".join(f"{i}. {_capital(step)}." for i, step in enumerate(steps, start=1))
        values |= {"first": steps[0], "before": steps[-2], "last": steps[-1]}
    if kind == "group":
        words = parts[0].split(", ")
        values["sorted"] = ", ".join(sorted([*words, parts[2]], key=str.lower))
        values |= {"kept": ", ".join(sorted(words, key=str.lower)), "and": f"{words[0]}, {words[1]} and {words[2]}"}
    if kind == "verb":
        values |= {"count": str(len(parts[0].split())), "words": str(len(parts[1].split()))}
        values |= {"low": _lower(parts[0]), "past": _lower(parts[1])}
    if kind == "sum":
        n, m = int(parts[0]), int(parts[1])
        numbers = {"n": n, "m": m, "sum": n + m, "minus": n - m, "double": 2 * (n + m), "triple": 3 * m}
        values |= {name: str(value) for name, value in (numbers | {"two": 2 * m, "three": 3 * m}).items()}
    return values | {name.upper(): _capital(text) for name, text in values.items() if len(name) == 1}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lower(sentence: str) -> str:
    """Return a sentence as a clause within another one, without its full stop."""
    first, rest = sentence[:1], sentence[1:].rstrip(".")
    return (first if sentence.startswith(("I ", "Mr")) else first.lower()) + rest


def _row(frame: str, values: Mapping[str, str]) -> dict[str, object]:
    text, answer = frame.removeprefix("> ").split(" = ", 1)
    instruction, _, given = text.partition(" < ")
    filled = [re.sub(r"\{(\w+)\}", lambda match: values[match[1]], part) for part in (instruction, given, answer)]
    return {"instruction": _capital(filled[0]), "input": filled[1], "output": _capital(filled[2].replace("/", "\n"))}


def rows(split: str) -> list[dict[str, object]]:
    """Return the rows of a split in the columns ``instruction``, ``input`` and ``output``, shuffled.

    Args:
        split: ``train`` or ``validation``.

    Raises:
        ValueError: if the split is unknown.
    """
    check_split(split)
    rng = random.Random(f"{SEED}/{split}")
    own = facts(split)
    frames = read_sections(FRAMES)
    kinds = sorted({heading.split()[0] for heading in frames})
    found: list[dict[str, object]] = []
    seen: set[str] = set()
    turn = 0
    while len(found) < ROWS[split]:
        level = turn % LEVELS
        kind = kinds[turn // LEVELS % len(kinds)]
        turn += 1
        if kind == "sum":  # multiples of five are for validation alone
            low, high = ([n for n in span if (n % 5 == 0) == (split == "validation")] for span in _NUMBERS)
            fact = f"{rng.choice(high)} | {rng.choice(low)}"
        else:
            fact = rng.choice(own[kind])
        row = _row(rng.choice(frames[f"{kind} {level}"]), _values(kind, fact, rng))
        key = normalise(f"{row['instruction']} {row['input']}")
        if key not in seen:
            seen.add(key)
            found.append(row)
        elif turn > 60 * ROWS[split]:
            raise RuntimeError(f"the instructions of {split} give only {len(found)} different rows")
    rng.shuffle(found)
    return found
