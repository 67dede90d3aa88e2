"""Prompts: the forms in which a row is put to a model that generates, and their tokens.

A form is one function, ``(text, pair, tokenizer) -> prompt``, registered by name. None of them names a task. The prompt
is what a router on a decoder reads too, so that routing and generation share its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizers import Encoding

from dynamorouter.errors import ConfigError, one_of
from dynamorouter.model.text.tokenize import TextPair, Window
from dynamorouter.registry import Registry

if TYPE_CHECKING:
    from dynamorouter.model.base.base import Base
    from dynamorouter.model.base.config import BaseSpec
    from dynamorouter.tasks.task import Task

Form = Callable[[str, str | None, Any], str]
"""Makes a prompt of a row's text and pair; the tokenizer is for forms that it defines."""
prompts: Registry[Form] = Registry("prompt", "dynamorouter.model.text", group="prompts")


@prompts.register("plain")
def plain(text: str, pair: str | None, tokenizer: Any) -> str:
    """Text and pair as they are, an empty line after each."""
    return f"{text}\n\n" if pair is None else f"{text}\n\n{pair}\n\n"


@prompts.register("alpaca")
def alpaca(text: str, pair: str | None, tokenizer: Any) -> str:
    """An instruction, with its input where it has one (Taori et al., 2023)."""
    if pair is None:
        return (
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            f"\n\n### Instruction:\n{text}\n\n### Response:\n"
        )
    return (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        f"response that appropriately completes the request.\n\n### Instruction:\n{text}\n\n### Input:\n{pair}"
        "\n\n### Response:\n"
    )


@prompts.register("query_answer")
def query_answer(text: str, pair: str | None, tokenizer: Any) -> str:
    """A query, with its context where it has one, and the answer's beginning."""
    return f"Query: {text}\n\nAnswer:\n" if pair is None else f"Query: {text}\n\nContext: {pair}\n\nAnswer:\n"


@prompts.register("sharegpt")
def sharegpt(text: str, pair: str | None, tokenizer: Any) -> str:
    """One turn of a conversation as ShareGPT names its speakers."""
    message = text if pair is None else f"{text}\n\n{pair}"
    return f"human: {message}\n\ngpt: \n"


@prompts.register("chat")
def chat(text: str, pair: str | None, tokenizer: Any) -> str:
    """One user's turn in the tokenizer's own chat template.

    Raises:
        ConfigError: it has none.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"prompt 'chat' needs a chat template, and the tokenizer {getattr(tokenizer, 'name_or_path', '')!r} has "
            f"none; choose {one_of(name for name in prompts if name != 'chat')}, or a base with a template"
        )
    message = text if pair is None else f"{text}\n\n{pair}"
    turns = [{"role": "user", "content": message}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def prompt_form(task: Task, base: BaseSpec) -> str:
    """Return the form in which a task's rows are put to a base.

    The task's own ``prompt`` comes first, then that of a base that is spoken to in a form of its own, such as ``chat``,
    then the one that goes with the task's data.
    """
    base_prompt = base.prompt if base.prompt != "plain" else None
    return task.prompt or base_prompt or task.default_prompt or base.prompt


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row as a model that generates reads it.

    Attributes:
        encoding: its tokens; those that begin a text are among them, and for an encoder-decoder those that end one.
        cut: tokens of the row that were left out.
    """

    encoding: Encoding
    cut: int = 0

    @property
    def ids(self) -> list[int]:
        """Token ids."""
        return list(self.encoding.ids)


def encode_prompts(base: Base, rows: Sequence[TextPair], *, form: str, room: int) -> list[Prompt]:
    """Put rows into a form and turn them into tokens; of what is too long, the end of the row's own text is cut.

    A pair is cut before the text that it goes with, and the form's own words are never cut.

    Raises:
        ConfigError: there is no such form, or its own words do not fit.
    """
    encodings = _encode(base, rows, form)
    return [
        Prompt(encoding) if len(encoding) <= room else _shortened(base, row, encoding, form=form, room=room)
        for row, encoding in zip(rows, encodings, strict=True)
    ]


def prompt_windows(base: Base, rows: Sequence[TextPair], *, max_tokens: int, stride: int) -> list[Window]:
    """Return what a router on this base reads: windows of text and pair, or on a base that generates, its prompts."""
    if base.kind == "encoder":
        return base.encoder.windows(rows, max_tokens=max_tokens, stride=stride)
    room = min(max_tokens, base.encoder.limit)
    encoded = encode_prompts(base, rows, form=base.spec.prompt, room=room)
    return [Window(row, 0, prompt.encoding) for row, prompt in enumerate(encoded)]


def _encode(base: Base, rows: Sequence[TextPair], form: str) -> list[Encoding]:
    """Encode the prompts of rows; a decoder goes on from them, so nothing that ends a text is left at their end."""
    write = prompts.get(form)
    if base.kind == "seq2seq":
        return base.encoder.encode_written(rows, lambda text, pair: write(text, pair, base.tokenizer).rstrip())
    encodings = base.encoder.encode_written(rows, lambda text, pair: write(text, pair, base.tokenizer))
    bos = getattr(base.tokenizer, "bos_token_id", None)
    for encoding in encodings:
        special = encoding.special_tokens_mask
        end = len(special)
        while end > 1 and special[end - 1] and encoding.offsets[end - 1] == (0, 0):
            end -= 1
        encoding.truncate(end)
        if bos is not None and list(encoding.ids[:2]) == [bos, bos]:  # the form wrote one already
            encoding.truncate(end - 1, direction="left")
    return encodings


def _shortened(base: Base, row: TextPair, encoding: Encoding, *, form: str, room: int) -> Prompt:
    """Cut the end of a row's pair, and where that does not do, of its text, until its prompt fits."""
    parts = list(row)
    uncut_tokens = len(encoding)
    for part in (1, 0):
        text = parts[part]
        if text is None:
            continue
        offsets = base.encoder.encode([text], special=False)[0].offsets
        kept_tokens = len(offsets)
        while len(encoding) > room and kept_tokens > 1:
            kept_tokens = max(1, kept_tokens - (len(encoding) - room))
            parts[part] = text[: offsets[kept_tokens - 1][1]]
            encoding = _encode(base, [(str(parts[0]), parts[1])], form)[0]
    if len(encoding) > room:
        raise ConfigError(
            f"prompt {form!r} takes {len(encoding)} tokens on base {base.spec.name!r} with one token of the row's own, "
            f"but {room} are allowed; raise the task's max_tokens, or choose another prompt"
        )
    return Prompt(encoding, uncut_tokens - len(encoding))
