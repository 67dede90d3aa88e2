"""Special tokens of a tokenizer, such as ``</s>`` or ``[SEP]``, kept apart from the same characters in a row's text.

What a user writes must not end a text or open a turn of a chat. So the tokenizer is copied with its special tokens
renamed to what no text can hold: control characters are refused in texts (``tasks.text``). A text is then ordinary
characters throughout, whatever the family of the tokenizer, and a form of a prompt, whose own special tokens are meant,
has the new names in their place. Ids stay as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer

_NAME, _LITERAL = "\x02{}\x03", "\x04{}\x05"
_LITERALS = re.compile("\x04(\\d+)\x05")


class SpecialTokens:
    """The special tokens of a tokenizer.

    Args:
        tokenizer: a ``transformers`` tokenizer that is backed by ``tokenizers``.
    """

    def __init__(self, tokenizer: Any) -> None:
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
        flagged = {token.content for token in added if token.special}
        self._texts = sorted(flagged | set(tokenizer.all_special_tokens), key=lambda text: (-len(text), text))
        self._pattern = re.compile("|".join(map(re.escape, self._texts)) or "(?!)")

    def held_by(self, texts: Iterable[str | None]) -> bool:
        """Tell whether any text holds the characters of a special token."""
        return any(text is not None and self._pattern.search(text) for text in texts)

    def renamed(self, backend: Tokenizer) -> Tokenizer:
        """Return a copy of a tokenizer that knows these tokens by their new names alone."""
        form: dict[str, Any] = json.loads(backend.to_str())
        new_names = {text: _NAME.format(text) for text in self._texts}
        for token in form["added_tokens"]:
            token["content"] = new_names.get(token["content"], token["content"])
        model = form["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {new_names.get(piece, piece): index for piece, index in model["vocab"].items()}
        else:  # Unigram: pieces with their scores
            model["vocab"] = [[new_names.get(piece, piece), score] for piece, score in model["vocab"]]
        if isinstance(model.get("unk_token"), str):
            model["unk_token"] = new_names.get(model["unk_token"], model["unk_token"])
        if model.get("merges"):
            model["merges"] = [merge for merge in model["merges"] if _merged(merge) not in new_names]
        return Tokenizer.from_str(json.dumps(form, ensure_ascii=False))

    def protected(self, text: str) -> str:
        """Return a row's text with a sign in the place of each special token, for a form to write its prompt with."""
        return self._pattern.sub(lambda match: _LITERAL.format(self._texts.index(match.group())), text)

    def written(self, prompt: str) -> str:
        """Return the prompt of a protected row: the form's special tokens renamed, those of the row as they were."""
        renamed = self._pattern.sub(lambda match: _NAME.format(match.group()), prompt)
        return _LITERALS.sub(lambda match: self._texts[int(match.group(1))], renamed)


def _merged(merge: str | Iterable[str]) -> str:
    """Return the piece that a merge makes; older files write its two parts as one string with a blank between."""
    return "".join(merge.split(" ") if isinstance(merge, str) else merge)
