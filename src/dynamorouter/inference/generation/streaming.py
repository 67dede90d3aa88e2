"""Text from tokens that arrive one at a time: whole characters only, and nothing of a stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"
"""What a tokenizer puts where the bytes of a character are not all there."""


class TextStream:
    """Turns one row's tokens into pieces of text whose concatenation is the row's whole text.

    Args:
        decode: token ids to text, special tokens left out.
        stop: texts that end the row.

    Attributes:
        text: what has been given out so far.
        stopped: whether a stop text has been met.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str]) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._start = self._read = 0  # tokens before start are not needed any more; those before read are in the text
        self._pending = ""  # text that may turn out to be the beginning of a stop text
        self.text = ""
        self.stopped = False

    def push(self, tokens: Sequence[int]) -> str:
        """Take tokens and return the text that they settle, which may be empty."""
        self._ids.extend(tokens)
        before = self._decode(self._ids[self._start : self._read])
        now = self._decode(self._ids[self._start :])
        if len(now) <= len(before) or now.endswith(UNFINISHED):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return self._settle(now[len(before) :])

    def close(self) -> str:
        """Return what was held back; a character that is not whole is left out."""
        if self.stopped:
            return ""
        before = self._decode(self._ids[self._start : self._read])
        remainder = self._decode(self._ids[self._start :])[len(before) :].rstrip(UNFINISHED)
        piece = self._settle(remainder)
        if not self.stopped:
            piece += self._pending
            self.text += self._pending
            self._pending = ""
        return piece

    def _settle(self, text: str) -> str:
        """Cut at the first stop text, and hold back what may become one."""
        self._pending += text
        stop_starts = [start for start in (self._pending.find(stop) for stop in self._stop) if start >= 0]
        self.stopped = bool(stop_starts)
        end = min(stop_starts) if stop_starts else len(self._pending) - self._partial_stop()
        piece, self._pending = self._pending[:end], self._pending[end:]
        self.text += piece
        return piece

    def _partial_stop(self) -> int:
        """Return the length of the longest end of the held text with which a stop text begins."""
        longest = min(len(self._pending), max(map(len, self._stop), default=1) - 1)
        return next((n for n in range(longest, 0, -1) if any(s.startswith(self._pending[-n:]) for s in self._stop)), 0)
