"""Progress of long work, on a terminal as a bar and elsewhere as lines."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Self, TextIO


class Progress:
    """Shows how far a piece of work is, at what rate, and how long it will take.

    On a terminal one line is redrawn; elsewhere a line is printed every ``every`` seconds and one at the end.

    Args:
        label: what is being done.
        total: number of units, or ``None`` where it is not known.
        unit: what is counted, such as ``"rows"``.
        every: seconds between lines where there is no terminal.
        stream: where to write; standard error by default.
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        *,
        unit: str = "rows",
        every: float = 10.0,
        stream: TextIO | None = None,
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._every = 0.2 if self._live else every
        self._start = self._shown = time.monotonic()
        self._note = ""
        self.done = 0

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Add ``count`` units; ``note`` is shown beside them, such as the current loss."""
        self.done += count
        self._note = self._note if note is None else note
        now = time.monotonic()
        if now - self._shown >= self._every:
            self._shown = now
            self._write(self._line(now), last=False)

    def _line(self, now: float) -> str:
        seconds = max(now - self._start, 1e-9)
        rate = self.done / seconds
        of = f"/{self.total}" if self.total is not None else ""
        share = f" {100 * self.done / self.total:3.0f} %" if self.total else ""
        parts = [f"{self.label}:{share} {self.done}{of} {self.unit}", f"{rate:.3g} {self.unit}/s"]
        if self.total is not None and self.done < self.total and rate > 0:
            parts.append(f"{_clock((self.total - self.done) / rate)} left")
        else:
            parts.append(_clock(seconds))
        return ", ".join([*parts, self._note] if self._note else parts)

    def _write(self, line: str, *, last: bool) -> None:
        with suppress(BrokenPipeError):
            self._stream.write(f"\r{line}\x1b[K" + ("\n" if last else "") if self._live else f"{line}\n")
            self._stream.flush()

    def close(self) -> None:
        """Write the last line."""
        self._write(self._line(time.monotonic()), last=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return (
        f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
        if whole >= 3600
        else f"{whole // 60}:{whole % 60:02d}"
    )
