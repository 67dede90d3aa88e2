"""Progress of long work: what the work tells, and how it is shown, as bars on a terminal and as lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Protocol, TextIO


class Progress(Protocol):
    """What long work tells about how far it is, one part after the other."""

    def start(self, label: str, total: int | None = None, *, unit: str = "rows") -> None:
        """Begin a part of the work, the part before it being done.

        Args:
            label: what is being done.
            total: number of units to come, or ``None`` where it is not known.
            unit: what is counted.
        """

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Add ``count`` units that are done; ``note`` is shown beside them, such as the current loss."""


class Silent:
    """Progress that nobody watches."""

    def start(self, label: str, total: int | None = None, *, unit: str = "rows") -> None:
        """See ``Progress``."""

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """See ``Progress``."""


SILENT = Silent()
"""What work tells its progress to unless it is given something else."""


@contextmanager
def shown_progress(stream: TextIO | None = None, *, every: float = 10.0) -> Iterator[Progress]:
    """Show progress while the block runs.

    Args:
        stream: where to; standard error by default. A terminal gets bars.
        every: seconds between lines where it is no terminal; each part has one more at its end.
    """
    stream = sys.stderr if stream is None else stream
    progress = Bars(stream) if stream.isatty() else Lines(stream, every=every)
    try:
        yield progress
    finally:
        progress.close()


class Bars:
    """A bar for each part, by ``rich``.

    Args:
        stream: a terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        from rich import progress
        from rich.console import Console

        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[unit]}"),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[note]}"),
            console=Console(file=stream),
            refresh_per_second=5,
        )
        self._part: progress.TaskID | None = None

    def start(self, label: str, total: int | None = None, *, unit: str = "rows") -> None:
        """See ``Progress``."""
        self._bars.start()
        if self._part is not None:
            self._bars.stop_task(self._part)
        self._part = self._bars.add_task(label, total=total, unit=unit, note="")

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """See ``Progress``."""
        if self._part is None:
            return
        self._bars.advance(self._part, count)
        if note is not None:
            self._bars.update(self._part, note=note)

    def close(self) -> None:
        """Draw the bars a last time."""
        self._bars.stop()


class Lines:
    """A line every few seconds, with the rate and the time that is left, and one at the end of each part.

    Args:
        stream: where to write.
        every: seconds between lines.
    """

    def __init__(self, stream: TextIO, *, every: float) -> None:
        self._stream, self._every = stream, every
        self._label = ""

    def start(self, label: str, total: int | None = None, *, unit: str = "rows") -> None:
        """See ``Progress``."""
        self.close()
        self._label, self._total, self._unit = label, total, unit
        self._done, self._note = 0, ""
        self._began = self._written = time.monotonic()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """See ``Progress``."""
        self._done += count
        self._note = self._note if note is None else note
        now = time.monotonic()
        if now - self._written >= self._every:
            self._write(now)

    def close(self) -> None:
        """Write the last line of the part."""
        if self._label:
            self._write(time.monotonic())
        self._label = ""

    def _write(self, now: float) -> None:
        self._written = now
        seconds = max(now - self._began, 1e-9)
        rate = self._done / seconds
        total = self._total
        share = f" {100 * self._done / total:3.0f} %" if total else ""
        count = f"{self._done}" if total is None else f"{self._done}/{total}"
        parts = [f"{self._label}:{share} {count} {self._unit}", f"{rate:.3g} {self._unit}/s"]
        if total is not None and self._done < total and rate > 0:
            parts.append(f"{_clock((total - self._done) / rate)} left")
        else:
            parts.append(_clock(seconds))
        with suppress(BrokenPipeError):
            self._stream.write(", ".join([*parts, self._note] if self._note else parts) + "\n")
            self._stream.flush()


def _clock(seconds: float) -> str:
    """Return seconds as ``1:02:03`` or ``2:03``."""
    return str(timedelta(seconds=round(seconds))).removeprefix("0:").removeprefix("0")
