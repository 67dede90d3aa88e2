"""Built-in small Python tasks: a sentence, a program, and its tests, in the columns of MBPP.

They stand in ``mbpp_tasks.txt``. The sentence names the function and its arguments, so that tests can find them; every
program passes its tests in the sandbox, which the project's own tests check.
"""

from __future__ import annotations

import random
import re
from functools import cache
from importlib import resources

from builtin_data._cores import check_split

SEED = 20261123
VALIDATION_EVERY = 5


@cache
def _tasks() -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """Return sentence, program and tests of all tasks, in the order of the file."""
    text = resources.files(__package__).joinpath("mbpp_tasks.txt").read_text(encoding="utf-8")
    found = []
    for block in re.split(r"^== ", text, flags=re.MULTILINE)[1:]:
        sentence, *lines = block.strip().splitlines()
        program = "\n".join(line for line in lines if not line.startswith("? "))
        found.append((sentence, program, tuple(line[2:] for line in lines if line.startswith("? "))))
    return tuple(found)


def rows(split: str) -> list[dict[str, object]]:
    """Return the rows of a split in the native columns of MBPP, shuffled.

    Args:
        split: ``train`` or ``validation``.

    Raises:
        ValueError: if the split is unknown.
    """
    check_split(split)
    order = list(range(len(_tasks())))
    random.Random(SEED).shuffle(order)
    kept = [number for rank, number in enumerate(order) if (rank % VALIDATION_EVERY == 0) == (split == "validation")]
    found: list[dict[str, object]] = []
    for number in kept:
        sentence, program, tests = _tasks()[number]
        found.append(
            {"task_id": number + 1, "text": sentence, "code": program, "test_list": list(tests), "test_setup_code": ""}
        )
    return found
