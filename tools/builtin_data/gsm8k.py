"""Built-in arithmetic word problems: hand-written templates filled with drawn numbers, right by construction.

The templates stand in ``gsm8k_templates.txt``. Their solutions carry each sum as ``<<3*4=12>>12`` and end in
``#### N``, as in GSM8K. Templates are split first and filled afterwards, so no template is in both splits.
"""

from __future__ import annotations

import ast
import operator
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib import resources
from types import MappingProxyType

from builtin_data._cores import check_split, normalise

SEED = 20261121
ROWS: Mapping[str, int] = MappingProxyType({"train": 720, "validation": 120})
VALIDATION_EVERY = 6

_WOMEN = ("Amira", "Bella", "Carla", "Dina", "Elsa", "Farah", "Greta", "Hana", "Ines", "Jana", "Kira", "Lena", "Mira",
          "Nora", "Olga", "Priya", "Rosa", "Sara", "Tara", "Vera")  # fmt: skip
_MEN = ("Ali", "Ben", "Carl", "Dario", "Emil", "Finn", "Gino", "Hugo", "Ivo", "Jonas", "Karim", "Leo", "Marco", "Nils",
        "Omar", "Paul", "Rafael", "Samir", "Theo", "Victor")  # fmt: skip
_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "sweets": ("cookies", "muffins", "scones", "doughnuts", "biscuits", "waffles"),
        "things": ("candles", "mugs", "notebooks", "posters", "bracelets", "key rings"),
        "toys": ("toy cars", "marbles", "stickers", "trading cards", "building blocks", "puzzle pieces"),
        "fruits": ("apples", "pears", "plums", "oranges", "peaches", "lemons"),
        "plants": ("carrots", "lettuces", "tulips", "beans", "onions", "sunflowers"),
        "parts": ("screws", "bolts", "springs", "lids", "buttons"),
        "animals": ("goats", "sheep", "cows", "rabbits", "horses"),
        "shop": ("corner shop", "craft stall", "market stand", "gift shop"),
        "garment": ("coat", "jacket", "dress", "sweater", "suit"),
        "gadget": ("bicycle", "camera", "guitar", "tablet", "telescope"),
        "place": ("zoo", "aquarium", "circus", "funfair", "planetarium"),
        "vehicle": ("bus", "tram", "ferry", "metro"),
    }
)
_OPERATORS: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = MappingProxyType(
    {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
)
_SUM = re.compile(r"\[(\$?)([a-z0-9+*/-]+)=([a-z])\]")


@dataclass(frozen=True, slots=True)
class Template:
    """One problem: the ranges of its numbers as (low, high, step), its question and the steps of its solution."""

    ranges: tuple[tuple[str, tuple[int, int, int]], ...]
    question: str
    steps: tuple[str, ...]


@cache
def templates(split: str) -> tuple[Template, ...]:
    """Return the templates of one split.

    Raises:
        ValueError: if ``split`` is neither ``train`` nor ``validation``.
    """
    check_split(split)
    text = resources.files(__package__).joinpath("gsm8k_templates.txt").read_text(encoding="utf-8")
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    found = [_parse(block) for block in re.split(r"\n\s*\n", text.strip())]
    random.Random(SEED).shuffle(found)
    return tuple(t for rank, t in enumerate(found) if (rank % VALIDATION_EVERY == 0) == (split == "validation"))


def _parse(block: str) -> Template:
    head, question, *steps = block.splitlines()
    ranges = []
    for part in head.removeprefix("== ").split("; "):
        name, span = part.split(" ")
        span, _, step = span.partition("/")
        low, high = span.split("-")
        ranges.append((name, (int(low), int(high), int(step or 1))))
    return Template(tuple(ranges), question.removeprefix("? "), tuple(step.removeprefix("> ") for step in steps))


def evaluate(sum_: str, values: Mapping[str, Fraction]) -> Fraction:
    """Return the exact value of a sum of named and written numbers."""

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        return values[node.id] if isinstance(node, ast.Name) else Fraction(ast.literal_eval(node))

    return value(ast.parse(sum_, mode="eval").body)


def _people(rng: random.Random) -> dict[str, str]:
    """Return two names, and the pronouns of the first."""
    woman = rng.random() < 0.5
    name = rng.choice(_WOMEN if woman else _MEN)
    other = rng.choice([each for each in _WOMEN + _MEN if each != name])
    she, her, him = ("she", "her", "her") if woman else ("he", "his", "him")
    return {"name": name, "name2": other, "she": she, "She": she.capitalize(), "her": her, "him": him}


def _fill(template: Template, rng: random.Random) -> dict[str, str] | None:
    """Return a row, or nothing where a result is no whole number above zero."""
    values = {name: Fraction(rng.randrange(low, high + 1, step)) for name, (low, high, step) in template.ranges}
    words = {**_people(rng), **{slot: rng.choice(choice) for slot, choice in _WORDS.items()}}
    results: list[Fraction] = []

    def work_out(found: re.Match[str]) -> str:
        dollar, sum_, name = found.groups()
        values[name] = evaluate(sum_, values)
        results.append(values[name])
        shown = re.sub("[a-z]", lambda letter: str(values[letter[0]]), sum_)
        return f"{shown} = {dollar}<<{shown}={values[name]}>>{values[name]}"

    def render(text: str) -> str:
        shown = re.sub(r"\{(\w+)\}", lambda slot: words.get(slot[1]) or str(values[slot[1]]), text)
        return re.sub(r"\b2 times as", "twice as", shown)

    question = render(template.question)
    steps = [render(_SUM.sub(work_out, step)) for step in template.steps]
    if any(result.denominator != 1 or result <= 0 for result in results):
        return None
    return {"question": question, "answer": "\n".join([*steps, f"#### {results[-1]}"])}


def rows(split: str) -> list[dict[str, object]]:
    """Return the rows of a split in the native columns ``question`` and ``answer``, shuffled.

    Args:
        split: ``train`` or ``validation``.

    Raises:
        ValueError: if the split is unknown.
    """
    kept = templates(split)
    rng = random.Random(f"{SEED}/{split}")
    found: list[dict[str, object]] = []
    seen: set[str] = set()
    turn = 0
    while len(found) < ROWS[split]:
        row = _fill(kept[turn % len(kept)], rng)
        if row is None or normalise(row["question"]) in seen:
            continue
        seen.add(normalise(row["question"]))
        found.append(dict(row))
        turn += 1
    rng.shuffle(found)
    return found
