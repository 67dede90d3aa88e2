"""Conversations, as chat data sets hold them, as a text to be answered and its answer.

A turn is ``{"role": "user", "content": ...}``, or ``{"from": "human", "value": ...}`` as in ShareGPT; contents are
texts, or lists of parts ``{"type": "text", "text": ...}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynamorouter.tasks.kinds.base import parsed

COLUMNS = ("messages", "conversations")
"""Names of columns that hold conversations."""
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
"""The role of a speaker, by the names that data sets have for it."""
_SHOWN = {"user": "User", "assistant": "Assistant"}


@dataclass(frozen=True, slots=True)
class Exchange:
    """A conversation up to the answer that is learned.

    Attributes:
        text: what is answered: the system's words, a blank line, and the user's; where there were earlier turns, all of
            them, each after ``User:`` or ``Assistant:``.
        answer: the last turn, where it is the assistant's.
    """

    text: str
    answer: str | None


def chat_of(value: Any) -> list[Mapping[str, Any]] | None:
    """Return the turns of a conversation, which may stand in a table as JSON; ``None`` for what is none."""
    turns = parsed(value) if isinstance(value, str) and value.lstrip().startswith("[{") else value
    is_chat = isinstance(turns, list) and bool(turns) and all(_keys(turn) is not None for turn in turns)
    return turns if is_chat else None


def conversation(row: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """Return the conversation in a row's column for them; ``None`` where there is none."""
    return next((turns for column in COLUMNS if (turns := chat_of(row.get(column))) is not None), None)


def exchange(turns: Sequence[Mapping[str, Any]]) -> Exchange | str:
    """Return a conversation as a text and its answer, or a sentence saying why it is none."""
    spoken: list[tuple[str, str]] = []
    for number, turn in enumerate(turns, start=1):
        role_key, content_key = _keys(turn) or ("role", "content")
        role = ROLES.get(str(turn[role_key]).strip().lower())
        if role is None:
            return f"turn {number} is by {turn[role_key]!r}; allowed: {', '.join(ROLES)}"
        content = _content(turn[content_key])
        if content is None:
            return f"turn {number} holds {str(turn[content_key])[:40]!r}, no text; only texts are read"
        spoken.append((role, content))
    answer = spoken.pop()[1] if spoken[-1][0] == "assistant" else None
    system = [content for role, content in spoken if role == "system"]
    dialogue = [(role, content) for role, content in spoken if role != "system"]
    if not dialogue or dialogue[-1][0] != "user":
        return "the user's turn is missing that the last turn answers; give user and assistant in turn"
    lines = [content for _, content in dialogue]
    if len(dialogue) > 1:
        lines = [f"{_SHOWN[role]}: {content}" for role, content in dialogue]
    return Exchange("\n\n".join([*system, *lines]), answer)


def _keys(turn: Any) -> tuple[str, str] | None:
    """Return the keys of a turn's speaker and words."""
    pairs = (("role", "content"), ("from", "value"))
    return next((pair for pair in pairs if isinstance(turn, Mapping) and set(pair) <= turn.keys()), None)


def _content(value: Any) -> str | None:
    if isinstance(value, list):
        parts = [part["text"] for part in value if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
        return "".join(parts) if 0 < len(parts) == len(value) else None
    return value if isinstance(value, str) else None
