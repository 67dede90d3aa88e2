"""Answers that are written: the prompts of rows, how long and how freely each goes on, and the text that comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from dynamorouter.errors import ConfigError, one_of, suggest
from dynamorouter.model.bank import Gate
from dynamorouter.model.base import Base
from dynamorouter.model.encode import TextPair
from dynamorouter.model.generate import generate
from dynamorouter.model.lm_heads import prompt_room
from dynamorouter.model.passes import token_batches
from dynamorouter.model.prompts import Prompt, encode_prompts
from dynamorouter.model.sampling import GenerationOptions
from dynamorouter.tasks.task import Answer, Task


def task_prompts(base: Base, task: Task, rows: Sequence[TextPair]) -> list[Prompt]:
    """Return rows as the expert of a task reads them on its base."""
    form = task.prompt or base.spec.prompt
    return encode_prompts(base, rows, form=form, room=prompt_room(base, task, task.max_tokens))


def writing_options(task: Task, changes: Mapping[str, Any] | None = None) -> GenerationOptions:
    """Return how a task's expert writes.

    Args:
        task: has the defaults.
        changes: what is otherwise this time; it may name a ``seed`` too.

    Raises:
        ConfigError: an option is unknown, or a value of the wrong type or out of range.
    """
    known = {each.name: type(each.default) for each in fields(GenerationOptions)}
    wrong = [f"unknown option {name!r}{suggest(name, known)}" for name in changes or {} if name not in known]
    for name, value in (changes or {}).items():
        kind = known.get(name, object)
        fits = isinstance(value, int | float if kind is float else list | tuple if kind is tuple else kind)
        if not fits or (isinstance(value, bool) and kind is not object):
            wrong.append(f"{name} is {value!r}, not a {'list of texts' if kind is tuple else kind.__name__}")
    if wrong:
        raise ConfigError(f"generation: {'; '.join(wrong)}; allowed options: {one_of(known)}")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in (changes or {}).items()}
    return GenerationOptions(**{**asdict(task.generation), **given})


def text_answer(text: str) -> Answer:
    """Make an answer of what was written."""
    return Answer("text", text.strip(), 1.0)


def write(
    base: Base, task: Task, rows: Sequence[TextPair], *, gates: Callable[[int], Gate], budget: int
) -> list[Answer]:
    """Write an answer to each row of a task.

    Args:
        base: with the experts in its banks.
        task: whose rows they are.
        rows: texts and pairs.
        gates: makes the gate of a batch of so many rows.
        budget: most tokens in a pass.
    """
    prompts = [prompt.ids for prompt in task_prompts(base, task, rows)]
    options = writing_options(task)
    answers: dict[int, Answer] = {}
    for group in token_batches([len(prompt) + options.max_new_tokens for prompt in prompts], budget=budget):
        found = generate(base, [prompts[i] for i in group], gates(len(group)), options)
        answers.update(zip(group, (text_answer(each.text) for each in found), strict=True))
    return [answers[i] for i in range(len(rows))]
