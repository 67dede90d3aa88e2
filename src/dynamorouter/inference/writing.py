"""Generated answers: rows of different experts of a base in one batch, one pass per token for all.

Rows that a router has read go on from what it read; the others are read first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dynamorouter.inference.generation.decoding import Prefill
from dynamorouter.inference.generation.generate import generate, stream
from dynamorouter.inference.policy import BARE_BASE
from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.language import prompt_room
from dynamorouter.model.text.batching import token_batches
from dynamorouter.model.text.passes import Gates
from dynamorouter.model.text.prompts import Prompt, encode_prompts, prompt_form
from dynamorouter.model.text.tokenize import TextPair
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.task import Columns, Generation, Task
from dynamorouter.utils.explain import changed

LONGEST_BARE_PROMPT = 4096
"""Most tokens of a prompt, with the text that is written after it, on a bare base."""


@dataclass(frozen=True, slots=True)
class GenerationBatch:
    """Rows of one base to whose experts generate their answers; all mappings are by the same positions.

    Attributes:
        base: where.
        rows: texts and pairs.
        tasks: the task of each row's expert, which says how rows are read and how texts are generated.
        gates: makes the gate of the rows at some positions.
        options: settings of generation that differ from the tasks' own.
        prefill: what a router has read of rows on this base; it is left as it is.
        prefilled: positions of the rows in ``prefill`` that may go on from there, and its tokens of each.
    """

    base: Base
    rows: Mapping[int, TextPair]
    tasks: Mapping[int, Task]
    gates: Gates
    options: Mapping[str, Any] | None = None
    prefill: Prefill | None = None
    prefilled: Mapping[int, Sequence[int]] = field(default_factory=dict)

    def prompts(self) -> dict[int, list[int]]:
        """Return the tokens of each row as its own expert reads it."""
        prompts: dict[int, list[int]] = {}
        for task in {id(task): task for task in self.tasks.values()}.values():
            positions = [position for position, row_task in self.tasks.items() if row_task is task]
            encoded = task_prompts(self.base, task, [self.rows[position] for position in positions])
            prompts.update(zip(positions, (prompt.ids for prompt in encoded), strict=True))
        return prompts

    def continues(self, position: int, prompt: Sequence[int]) -> bool:
        """Tell whether a row goes on from ``prefill``: its expert reads the very tokens that were read."""
        return self.prefill is not None and list(self.prefilled.get(position, ())) == list(prompt)


def generate_answers(batch: GenerationBatch, *, budget: int) -> dict[int, Answer]:
    """Generate an answer to each row, by position.

    Args:
        batch: the rows.
        budget: most tokens in a pass, what is generated included.
    """
    prompts = batch.prompts()
    options = {position: writing_options(task, batch.options) for position, task in batch.tasks.items()}
    ready = [position for position, prompt in prompts.items() if batch.continues(position, prompt)]
    unread = [position for position in prompts if position not in set(ready)]
    answers: dict[int, Answer] = {}
    for positions, prefill in ((ready, batch.prefill), (unread, None)):
        lengths = [len(prompts[position]) + options[position].max_new_tokens for position in positions]
        for indices in token_batches(lengths, budget=budget):
            group = [positions[index] for index in indices]
            generated = generate(
                batch.base,
                [prompts[position] for position in group],
                batch.gates(group),
                [options[position] for position in group],
                reading=None if prefill is None else prefill.select(group),
            )
            for position, row in zip(group, generated, strict=True):
                answers[position] = replace(
                    text_answer(row.text),
                    finish_reason=row.finish_reason,
                    prompt_tokens=len(prompts[position]),
                    completion_tokens=len(row.ids),
                )
    return answers


def stream_answer(batch: GenerationBatch) -> Iterator[str]:
    """Generate the answer to the only row of a batch and yield it piece by piece."""
    ((position, prompt),) = batch.prompts().items()
    prefill = batch.prefill if batch.continues(position, prompt) else None
    options = writing_options(batch.tasks[position], batch.options)
    deltas = stream(
        batch.base,
        [prompt],
        batch.gates([position]),
        options,
        reading=None if prefill is None else prefill.select([position]),
    )
    for delta in deltas:
        if delta.text:
            yield delta.text


def task_prompts(base: Base, task: Task, rows: Sequence[TextPair]) -> list[Prompt]:
    """Return rows as the expert of a task reads them on its base."""
    return encode_prompts(base, rows, form=prompt_form(task, base.spec), room=prompt_room(base, task, task.max_tokens))


def bare_task(base: Base) -> Task:
    """Return the task of a base that writes without any expert: rows in its own form, settings by default."""
    generation = Generation()
    room = min(base.positions, LONGEST_BARE_PROMPT)
    return Task(
        name=BARE_BASE,
        head="seq2seq" if base.kind == "seq2seq" else "causal_lm",
        columns=Columns(text="text", pair="pair", target="target"),
        metrics=("lm_loss",),
        max_tokens=max(8, room - (generation.max_new_tokens if base.kind == "decoder" else 0)),
        stride=0,
    )


def writing_options(task: Task, changes: Mapping[str, Any] | None = None) -> Generation:
    """Return how a task's expert generates.

    Args:
        task: has the defaults.
        changes: what is otherwise this time, by the names of ``Generation`` or their aliases.

    Raises:
        ConfigError: an option is unknown, or a value of the wrong type or out of range.
    """
    return changed(task.generation, changes or {}, what="generation")


def text_answer(text: str) -> Answer:
    """Make an answer of a generated text."""
    return Answer("text", text.strip(), None)
