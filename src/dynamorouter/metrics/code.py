"""pass@k: generated programs are run against their tests (Chen et al., 2021), each in the sandbox.

A target is ``{"texts": [...], "tests": [...], "setup": ...}``; ``setup`` (a text or a list of lines, may be missing)
runs between the program and its tests. An answer's value is one program, or a list of samples for k > 1.
"""

from __future__ import annotations

import ast
import math
import os
import re
import textwrap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any, ClassVar

import numpy as np

from dynamorouter.errors import DataError
from dynamorouter.metrics.base import Metric, mean, metrics
from dynamorouter.metrics.bootstrap import Array
from dynamorouter.metrics.sandbox.runner import Limits, run_tests
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.record import Target
from dynamorouter.tasks.task import Task

_FENCE = re.compile(
    r"^[ \t]*(?P<fence>`{3,}|~{3,})[ \t]*(?P<tag>[^`\n]*)\n(?P<code>.*?)(?:^[ \t]*(?P=fence)[`~]*[ \t]*$|\Z)",
    re.DOTALL | re.MULTILINE,
)


def program_of(text: str) -> str:
    """Return the program in a generated text: its blocks of Python, else its first block, else all of it.

    Of several blocks those are taken together that go on with the program, such as imports, then a function: a block
    that gives no name a value, such as an example of its use, and one that defines a function or class again are left
    out. A text that begins with code, whose fence was in the prompt, is that code. The indentation of a block as a
    whole, as in a list, is taken away.
    """
    text = text.replace("\r\n", "\n")
    blocks = [(block["tag"].strip().lower(), textwrap.dedent(block["code"])) for block in _FENCE.finditer(text)]
    if not blocks:
        return text
    lead = re.split(r"^[ \t]*(?:`{3,}|~{3,})", text, maxsplit=1, flags=re.MULTILINE)[0]
    if _names(lead):
        return lead
    python = [code for tag, code in blocks if not tag or tag.startswith("py")]
    program: list[str] = []
    taken: set[str] = set()
    for code in python:
        names = _names(code)
        if names and not names.keys() & taken:
            program.append(code)
            taken |= {name for name, is_defined in names.items() if is_defined}
    return "\n".join(program) or next(iter(python or [code for _, code in blocks]))


def _names(code: str) -> dict[str, bool]:
    """Return the names that code gives a value at its top level, and whether as a function or class; none if broken."""
    try:
        statements = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    names: dict[str, bool] = {}
    for statement in statements:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[statement.name] = True
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name: False for alias in statement.names}
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            stored = (node for node in ast.walk(statement) if isinstance(node, ast.Name))
            names |= {node.id: False for node in stored if isinstance(node.ctx, ast.Store)}
    return names


def pass_at(k: int, samples: int, right: int) -> float:
    """Return the unbiased chance that one of ``k`` samples drawn without replacement is right.

    Raises:
        DataError: there are fewer than ``k`` samples.
    """
    if samples < k:
        raise DataError(f"pass@{k} needs at least {k} samples a row, got {samples}; generate more, or choose pass@1")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def _lines(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(line) for line in value or ()]


class _PassAt(Metric):
    """The mean over rows of the unbiased chance that one of k programs passes all of its tests."""

    answer_kind = "text"
    limits: ClassVar[Limits] = Limits()

    @classmethod
    def target_problem(cls, target: Target) -> str | None:
        """Return that there are no tests to run, or that one of them is no Python."""
        tests = _lines(target.get("tests")) if isinstance(target, dict) else []
        if not isinstance(target, dict) or not any(test.strip() for test in tests):
            return (
                f"needs tests in the target, got {str(target)[:60]!r}; name their column in the task: "
                "columns.extra={tests: COLUMN}, and give each row at least one"
            )
        for code in (*tests, "\n".join(_lines(target.get("setup")))):
            try:
                ast.parse(code)
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                return f"cannot run {code[:60]!r}, which is no Python ({error}); correct the row's tests and setup"
        return None

    def row(self, answer: Answer | None, target: Target, task: Task) -> tuple[float, ...]:
        """Return the chance, and 1."""
        problem = self.target_problem(target)
        if problem is not None or not isinstance(target, dict):
            raise DataError(f"task {task.name!r}: pass@{self.samples} {problem}")
        tests = [test for test in _lines(target["tests"]) if test.strip()]
        if answer is None:
            return 0.0, 1.0
        samples = _lines(answer.value)
        setup = "\n".join(_lines(target.get("setup")))
        verdicts: dict[str, bool] = {}
        for code in dict.fromkeys(map(program_of, samples)):
            verdicts[code] = run_tests(code, tests, setup=setup, limits=self.limits).passed
        return pass_at(self.samples, len(samples), sum(verdicts[program_of(text)] for text in samples)), 1.0

    def rows(self, answers: Sequence[Answer | None], targets: Sequence[Target], task: Task) -> Array:
        """Judge rows side by side, as many at a time as there are processors: the threads only wait."""
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            numbers = list(pool.map(self.row, answers, targets, repeat(task)))
        return np.array(numbers, dtype=float)

    def reduce(self, sums: Array) -> Array:
        """Return the mean."""
        return mean(sums)


@metrics.register("pass_at_1")
class PassAt1(_PassAt):
    """pass@1: the share of programs that pass their tests."""

    samples = 1


@metrics.register("pass_at_5")
class PassAt5(_PassAt):
    """pass@5: the chance that one of five samples passes."""

    samples = 5


@metrics.register("pass_at_10")
class PassAt10(_PassAt):
    """pass@10: the chance that one of ten samples passes."""

    samples = 10
