"""What an arm is: one contestant, which is fitted once per seed and then answers the rows of each task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from dynamorouter.bench.experiment import Experiment
from dynamorouter.errors import one_of, suggest
from dynamorouter.registry import Registry
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.task import Task


@dataclass(slots=True)
class Facts:
    """What is noted beside an arm's scores.

    Attributes:
        parameters: numbers that are stored besides the base to answer all tasks, heads and router included.
        work: multiplications to answer a token over those of the bare base's blocks; a change that is the same for all
            rows costs nothing, since it can be added to the weights.
        train_rows: rows of all tasks that the arm itself learned from, besides those that made the experts.
        evaluations: how often held-out rows were scored to make a choice.
        select: mean primary score on the rows that choices are made on, where the arm was scored there.
        options: what was chosen, or how the arm was set.
        notes: anything else, such as a router's accuracy or the top features of a classifier.
    """

    parameters: int = 0
    work: float = 1.0
    train_rows: int = 0
    evaluations: int = 0
    select: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


class Arm(ABC):
    """One contestant.

    Attributes:
        task_given: whether it is told the task of each row, so that it cannot choose the wrong head.
        about: one line for the report.

    Args:
        variant: what comes after the family's name and a slash; empty where a family has one member.
    """

    task_given: ClassVar[bool] = True
    about: ClassVar[str] = ""

    def __init__(self, variant: str = "") -> None:
        self.variant = variant
        self.facts = Facts()

    @classmethod
    def variants(cls, tasks: Sequence[str]) -> list[str]:
        """Return the members of the family, for these tasks."""
        return [""]

    def applies(self, task: Task) -> bool:
        """Tell whether the arm can answer a task; a task that it cannot answer has no row."""
        return True

    def suits(self, tasks: Sequence[Task]) -> bool:
        """Tell whether the arm can be made of the experts of these tasks; one that cannot has no rows at all."""
        return True

    @abstractmethod
    def fit(self, experiment: Experiment) -> None:
        """Do what is done once for all tasks; the same seed gives the same arm."""

    def prepare(self, experiment: Experiment, task: str) -> None:  # noqa: B027 - few arms need it
        """Do what is done once for a task, before its rows are answered; it depends on nothing done for others."""

    @abstractmethod
    def answer(self, experiment: Experiment, task: str) -> list[Answer | None]:
        """Answer the test rows of a task, in order; ``None`` where there is no answer of the task's kind."""


arms: Registry[type[Arm]] = Registry(
    "arm", "dynamorouter.bench.arms", group="arms", contract="dynamorouter.bench.arms.base:Arm"
)


def arm_names(tasks: Sequence[str]) -> list[str]:
    """Return the full names of all arms there are for these tasks, ``FAMILY`` or ``FAMILY/VARIANT``."""
    return [
        f"{family}/{variant}" if variant else family for family, arm in arms.items() for variant in arm.variants(tasks)
    ]


def build_arm(name: str) -> Arm:
    """Build an arm from its full name.

    Raises:
        ConfigError: there is no such family.
    """
    family, _, variant = name.partition("/")
    return arms.get(family)(variant)


def match_arms(patterns: Sequence[str], tasks: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arms that patterns such as ``merge/*`` name, in the patterns' order, and what is wrong with them.

    A pattern that begins with ``-`` takes away.
    """
    names = arm_names(tasks)
    chosen: dict[str, None] = {}
    mistakes = []
    for pattern in patterns:
        plain = pattern.removeprefix("-")
        matches = [name for name in names if fnmatchcase(name, plain)]
        if not matches:
            mistakes.append(f"no arm {plain!r}{suggest(plain, names)}; allowed: {one_of(names)}, or patterns with *")
        for name in matches:
            if pattern == plain:
                chosen[name] = None
            else:
                chosen.pop(name, None)
    return list(chosen), mistakes
