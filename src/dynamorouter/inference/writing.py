"""The part of the engine that writes: rows of different experts of a base in one batch, one pass per token for all.

Rows that a router has read go on from what it read; the others are read first.

Letters: B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dynamorouter.inference.generation.decoding import Prefill
from dynamorouter.inference.generation.generate import generate, stream
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.gate import Gate
from dynamorouter.model.heads.language import prompt_room
from dynamorouter.model.lora.expert import Expert
from dynamorouter.model.text.batching import token_batches
from dynamorouter.model.text.examples import TrainingExample, make_examples
from dynamorouter.model.text.packing import Layout, last_states
from dynamorouter.model.text.prompts import Prompt, encode_prompts
from dynamorouter.model.text.tokenize import TextPair
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.record import Record
from dynamorouter.tasks.task import Generation, Task
from dynamorouter.utils.explain import changed

Gates = Callable[[Sequence[int]], Gate]
"""Makes the gate of some rows."""


@dataclass(frozen=True, slots=True)
class GenerationBatch:
    """Rows of one base that are to be written.

    Attributes:
        base: where.
        rows: texts and pairs, by their place in a chunk.
        experts: the expert of each, by the same.
        begins: the block where each row's experts begin, by the same.
        gates: makes the gate of some places.
        changes: settings of generation that differ from the tasks' own.
    """

    base: Base
    rows: Mapping[int, TextPair]
    experts: Mapping[int, Expert]
    begins: Mapping[int, int]
    gates: Gates
    changes: Mapping[str, Any] | None = None

    def prompts(self) -> dict[int, list[int]]:
        """Return the tokens of each row as its own expert reads it."""
        found: dict[int, list[int]] = {}
        for expert in {id(expert): expert for expert in self.experts.values()}.values():
            mine = [place for place, other in self.experts.items() if other is expert]
            own = task_prompts(self.base, expert.task, [self.rows[place] for place in mine])
            found.update(zip(mine, (prompt.ids for prompt in own), strict=True))
        return found


def write_rows(
    wanted: GenerationBatch, reading: Prefill | None, read: Mapping[int, Sequence[int]], budget: int
) -> dict[int, Answer]:
    """Write an answer to each row.

    Args:
        wanted: the rows.
        reading: what a router read of the whole chunk on this base; it is left as it is.
        read: the tokens that it read, by place; rows whose expert reads the same go on from there.
        budget: most tokens in a pass, what is written included.
    """
    prompts = wanted.prompts()
    options = {place: writing_options(expert.task, wanted.changes) for place, expert in wanted.experts.items()}
    on = [place for place in prompts if reading is not None and _goes_on(wanted, place, prompts, reading, read)]
    answers: dict[int, Answer] = {}
    for places, begun in ((on, reading), ([place for place in prompts if place not in set(on)], None)):
        lengths = [len(prompts[place]) + options[place].max_new_tokens for place in places]
        for group in token_batches(lengths, budget=budget):
            mine = [places[i] for i in group]
            found = generate(
                wanted.base,
                [prompts[place] for place in mine],
                wanted.gates(mine),
                [options[place] for place in mine],
                reading=None if begun is None else begun.select(mine),
            )
            answers.update(zip(mine, (text_answer(each.text) for each in found), strict=True))
    return answers


def stream_row(wanted: GenerationBatch, reading: Prefill | None, read: Sequence[int]) -> Iterator[str]:
    """Write the answer to the only row and yield it piece by piece."""
    (prompt,) = wanted.prompts().values()
    (expert,) = wanted.experts.values()
    on = reading is not None and _goes_on(wanted, 0, {0: prompt}, reading, {0: read})
    begun = reading.select([0]) if on and reading is not None else None
    for piece in stream(
        wanted.base, [prompt], wanted.gates([0]), writing_options(expert.task, wanted.changes), reading=begun
    ):
        if piece.text:
            yield piece.text


def _goes_on(
    wanted: GenerationBatch,
    place: int,
    prompts: Mapping[int, Sequence[int]],
    reading: Prefill,
    read: Mapping[int, Sequence[int]],
) -> bool:
    """Tell whether a row's expert reads what the router has read, and what is mixed for it begins no lower."""
    return list(read.get(place, ())) == list(prompts[place]) and wanted.begins[place] >= reading.depth


@torch.inference_mode()
def target_losses(
    base: Base, records: Mapping[int, Record], experts: Mapping[int, Expert], gates: Gates, *, budget: int
) -> dict[int, tuple[float, int]]:
    """Return what the wanted text of each record costs its expert in nats, and of how many tokens it is.

    Args:
        base: that the experts sit on.
        records: by place.
        experts: by place; all of them write.
        gates: makes the gate of some places.
        budget: most tokens in a pass.
    """
    places, examples = [], list[TrainingExample]()
    for expert in {id(expert): expert for expert in experts.values()}.values():
        mine = [place for place, other in experts.items() if other is expert]
        examples += make_examples(base, expert.head, expert.task, [records[place] for place in mine], expert=0)
        places += mine
    found: dict[int, tuple[float, int]] = {}
    for group in token_batches([len(example) for example in examples], budget=budget):
        layout = Layout.of(examples, [[i] for i in group])
        hidden, mask = last_states(base, layout, layout.batch(base), gates([places[i] for i in group]))
        losses = experts[places[group[0]]].head.loss(hidden, mask, [examples[i].target for i in group])
        found.update({places[i]: (loss, examples[i].units) for i, loss in zip(group, losses.tolist(), strict=True)})
    return found


def task_prompts(base: Base, task: Task, rows: Sequence[TextPair]) -> list[Prompt]:
    """Return rows as the expert of a task reads them on its base."""
    form = task.prompt or base.spec.prompt
    return encode_prompts(base, rows, form=form, room=prompt_room(base, task, task.max_tokens))


def writing_options(task: Task, changes: Mapping[str, Any] | None = None) -> Generation:
    """Return how a task's expert writes.

    Args:
        task: has the defaults.
        changes: what is otherwise this time, by the names of ``Generation`` or their aliases.

    Raises:
        ConfigError: an option is unknown, or a value of the wrong type or out of range.
    """
    return changed(task.generation, changes or {}, what="generation")


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
