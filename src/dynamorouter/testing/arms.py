"""The laws of a comparison's arms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from dynamorouter.bench.arms.base import Arm, arms
from dynamorouter.bench.experiment import Experiment
from dynamorouter.tasks.kinds import head_kind
from dynamorouter.testing.contract import Contract, require


class ArmContract(Contract):
    """The laws of arms.

    Attributes:
        arm: the class.
        experiment: to fit it on; without one only what needs none is tested.
        names: of tasks, where there is no experiment.
    """

    arm: ClassVar[type[Arm]]
    experiment: ClassVar[Experiment | None] = None
    names: ClassVar[Sequence[str]] = ("one", "two")

    def test_is_what_the_registry_takes(self) -> None:
        """The class has all that an arm has, and a line on what it is."""
        require(not arms.fault(self.arm), arms.fault(self.arm))
        require(bool(self.arm.about), "about is empty: a report says in one line what an arm is")

    def test_variants_have_names_of_their_own(self) -> None:
        """There is one at least, each once; each can be built, and starts with facts of its own."""
        variants = self.arm.variants(self.experiment.names if self.experiment else self.names)
        require(bool(variants) and len(set(variants)) == len(variants), f"variants are {variants}")
        built = [self.arm(variant) for variant in variants]
        require(len({id(arm.facts) for arm in built}) == len(built), "two variants share their facts")

    def test_every_row_is_answered_in_order_and_again_the_same(self) -> None:
        """An arm has one answer for each row; the same seed gives the same arm.

        An arm that is told each row's task answers in the task's kind; another in the kind of any of the tasks.
        """
        if self.experiment is None:
            return
        for variant in self.arm.variants(self.experiment.names):
            first, second = self._answers(variant), self._answers(variant)
            require(first == second, f"variant {variant!r} fitted twice with one seed answers differently")

    def _answers(self, variant: str) -> dict[str, list[str | list[str] | None]]:
        assert self.experiment is not None
        arm = self.arm(variant)
        answers: dict[str, list[str | list[str] | None]] = {}
        arm.fit(self.experiment)
        for name, task in zip(self.experiment.names, self.experiment.tasks, strict=True):
            if not arm.applies(task):
                continue
            arm.prepare(self.experiment, name)
            row_answers = arm.answer(self.experiment, name)
            kinds = {answer.kind for answer in row_answers if answer is not None}
            allowed = {head_kind(one.head).answer_kind for one in ([task] if arm.task_given else self.experiment.tasks)}
            require(len(row_answers) == len(self.experiment.rows("test", name)), f"{name}: not one answer for each row")
            require(kinds <= allowed, f"{name}: answers are of kinds {sorted(kinds)}, of {sorted(allowed)}")
            answers[name] = [None if answer is None else answer.value for answer in row_answers]
        return answers
