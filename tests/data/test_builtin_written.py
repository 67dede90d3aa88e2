"""The built-in rows of tasks that are answered by writing: right by construction, finished, and leak-free."""

from __future__ import annotations

import re
from fractions import Fraction
from types import ModuleType
from typing import Any

import pytest

from builtin_data import gsm8k, mbpp, xsum
from dynamorouter.config.tasks import find_task
from dynamorouter.explore.near import clusters
from dynamorouter.explore.rows import read_rows, target_text
from dynamorouter.metrics.base import score
from dynamorouter.metrics.numbers import final_number
from dynamorouter.metrics.sandbox.runner import run_tests
from dynamorouter.tasks.answer import Answer

MODULES = [pytest.param(module, id=module.__name__.rpartition(".")[2]) for module in (gsm8k, mbpp, xsum)]
COLUMNS = {
    gsm8k: {"question", "answer"},
    mbpp: {"task_id", "text", "code", "test_list", "test_setup_code"},
    xsum: {"document", "summary"},
}
LEAST = {gsm8k: {"train": 600, "validation": 100}, mbpp: {"train": 96, "validation": 24},
         xsum: {"train": 400, "validation": 100}}  # fmt: skip
INPUT = {gsm8k: "question", mbpp: "text", xsum: "document"}
SPLITS = ("train", "validation")


def normalised(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("module", MODULES)
def test_rows_are_native_enough_and_repeatable(module: ModuleType, split: str) -> None:
    rows = module.rows(split)
    assert len(rows) >= LEAST[module][split]
    assert all(set(row) == COLUMNS[module] for row in rows)
    assert rows == module.rows(split)
    assert all(isinstance(row[column], str) and row[column].strip() for row in rows for column in (INPUT[module],))


@pytest.mark.parametrize("module", MODULES)
def test_no_input_is_repeated_in_or_between_splits(module: ModuleType) -> None:
    seen = [normalised(str(row[INPUT[module]])) for split in SPLITS for row in module.rows(split)]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("module", [gsm8k, xsum])
def test_templates_are_many_and_in_one_split_only(module: ModuleType) -> None:
    kept = [module.templates(split) if module is gsm8k else module.stories(split) for split in SPLITS]
    assert len(kept[0]) + len(kept[1]) >= 50
    assert not set(kept[0]) & set(kept[1])


@pytest.mark.parametrize("module", MODULES)
def test_no_row_of_validation_is_nearly_one_of_train(module: ModuleType) -> None:
    train, held = ([str(row[INPUT[module]]) for row in module.rows(split)] for split in SPLITS)
    found = clusters([*train, *held]).tolist()
    assert not set(found[: len(train)]) & set(found[len(train) :])


@pytest.mark.parametrize("module", [gsm8k, xsum])
def test_texts_are_finished(module: ModuleType) -> None:
    for split in SPLITS:
        for row in module.rows(split):
            for text in row.values():
                assert not re.search(r"[{}\[\]|]|  |None", text), text
                assert text == text.strip()
                assert text[0].isupper() or not text[0].isalpha()


def test_an_unknown_split_is_refused_by_name() -> None:
    for module in (gsm8k, mbpp, xsum):
        with pytest.raises(ValueError, match=r"no split 'test'; allowed are train and validation"):
            module.rows("test")


def worked(sum_: str) -> Fraction:
    """Work out a written sum apart from the module's own way: products first, from left to right."""
    total = Fraction(0)
    for sign, term in re.findall(r"([+-]?)([0-9*/]+)", sum_):
        value = Fraction(1)
        for mark, number in re.findall(r"([*/]?)(\d+)", term):
            value = value / int(number) if mark == "/" else value * int(number)
        total += -value if sign == "-" else value
    return total


@pytest.mark.parametrize("split", SPLITS)
def test_every_sum_is_right_and_the_last_is_the_answer(split: str) -> None:
    for row in gsm8k.rows(split):
        answer = str(row["answer"])
        sums = re.findall(r"(\S+) = \$?<<([^=]+)=(\d+)>>(\d+)", answer)
        assert sums, answer
        for shown, inner, result, again in sums:
            assert shown == inner
            assert result == again
            assert worked(inner) == int(result) > 0
        assert answer.splitlines()[-1] == f"#### {sums[-1][2]}"
        assert final_number(answer) == int(sums[-1][2])


def test_every_number_of_a_problem_is_needed() -> None:
    """Of a template's drawn numbers none is left out of both question and solution."""
    for split in SPLITS:
        for template in gsm8k.templates(split):
            text = template.question + " ".join(template.steps)
            used = set(re.findall(r"\{([a-z])\}", template.question))
            used |= {letter for sum_ in re.findall(r"\[\$?([^=]+)=", text) for letter in re.findall("[a-z]", sum_)}
            assert {name for name, _ in template.ranges} <= used, template.question


def test_sums_are_read_rightly() -> None:
    values = {"a": Fraction(7), "b": Fraction(2)}
    assert gsm8k.evaluate("a*b/4", values) == Fraction(7, 2)
    assert gsm8k.evaluate("a-b+10", values) == 15


def test_numbers_of_a_summary_stand_in_its_document_or_say_what_it_lacks() -> None:
    rows = [row for split in SPLITS for row in xsum.rows(split)]
    numbers = [(re.findall(r"\d[\d,.]*\d|\d", str(row["summary"])), str(row["document"])) for row in rows]
    found = [number in document for said, document in numbers for number in said]
    assert sum(found) / len(found) > 0.8
    assert all(str(row["summary"]) not in str(row["document"]) for row in rows)
    assert len({str(row["summary"]) for row in rows}) == len(rows)


def in_the_sandbox(programs: list[str], *, runner: str) -> None:
    """Check that programs pass a test each, sixteen in a process; ``runner`` is the definition of ``run(program)``."""
    for first in range(0, len(programs), 16):
        batch = programs[first : first + 16]
        verdict = run_tests(runner, [f"run({program!r})" for program in batch])
        assert verdict.passed, (verdict, batch[min(verdict.tests_passed, len(batch) - 1)])


def test_every_program_passes_its_tests_in_the_sandbox() -> None:
    rows: list[dict[str, Any]] = [row for split in SPLITS for row in mbpp.rows(split)]
    assert len(rows) >= 120
    assert len({row["task_id"] for row in rows}) == len(rows)
    programs = ["\n".join([row["code"], *row["test_list"]]) for row in rows]
    in_the_sandbox(programs, runner="def run(program):\n    exec(program, {})")


def test_programs_are_named_as_the_task_says_and_the_tests_can_fail() -> None:
    rows: list[dict[str, Any]] = [row for split in SPLITS for row in mbpp.rows(split)]
    for row in rows:
        name = re.search(r"function (\w+)\(", row["text"])
        assert name is not None
        assert f"def {name[1]}(" in row["code"]
        assert len(row["test_list"]) >= 3
        assert all(f"{name[1]}(" in test for test in row["test_list"])
    stubs = [re.sub(r"\ndef .*|\n .*", "", row["code"]) + "\n    return None\n" for row in rows]
    programs = [stub + "\n".join(row["test_list"]) for stub, row in zip(stubs, rows, strict=True)]
    fails = """def run(program):
    try:
        exec(program, {})
    except AssertionError:
        return
    raise RuntimeError("a program that returns nothing passes")
"""
    in_the_sandbox(programs, runner=fails)


@pytest.mark.parametrize("name", ["ag_news_text", "gsm8k", "mbpp", "xsum"])
def test_right_answers_get_full_marks_by_the_tasks_primary_metric(name: str) -> None:
    """From the task's file over its source and conversion to its metric, tests of programs included."""
    task = find_task(name)
    records = read_rows(task, "builtin", limit=8).records
    answers = [Answer("text", target_text(record) or "", 1.0) for record in records]
    primary = task.metrics[0]
    assert score(task, answers, records, metrics=[primary])[primary] == pytest.approx(1.0)
    wrong = [Answer("text", "nothing of the kind", 1.0) for _ in records]
    assert score(task, wrong, records, metrics=[primary])[primary] < 0.2
