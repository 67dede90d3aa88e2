"""Progress: lines where there is no terminal, bars on one, silence by default."""

from __future__ import annotations

import io

import pytest

from dynamorouter.utils.progress import SILENT, Bars, Lines, shown_progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_one_line_ends_each_part_off_a_terminal() -> None:
    stream = io.StringIO()
    with shown_progress(stream, every=3600) as progress:
        progress.start("experts", 1000)
        for _ in range(1000):
            progress.advance()
        progress.start("read", unit="files")
        progress.advance(3)
    first, second = stream.getvalue().splitlines()
    assert first.startswith("experts: 100 % 1000/1000 rows, ")
    assert second.startswith("read: 3 files, ")


def test_lines_tell_rate_time_left_and_note(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("dynamorouter.utils.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Lines(stream, every=10)
    progress.start("router", 100, unit="steps")
    for _ in range(3):
        now[0] += 5.0
        progress.advance(10, note="loss 0.5")
    assert stream.getvalue() == "router:  20 % 20/100 steps, 2 steps/s, 0:40 left, loss 0.5\n"
    now[0] = 3725.0
    progress.close()
    progress.close()
    assert stream.getvalue().splitlines()[1:] == ["router:  30 % 30/100 steps, 0.00805 steps/s, 2:24:52 left, loss 0.5"]


def test_a_terminal_shows_a_bar_for_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with shown_progress(stream) as progress:
        assert isinstance(progress, Bars)
        progress.start("arms", 2, unit="arms")
        progress.advance(note="merge/ties")
        progress.start("score", 10)
        progress.advance(4)
    drawn = stream.getvalue().splitlines()
    arms = [line for line in drawn if "arms" in line][-1]
    score = [line for line in drawn if "score" in line][-1]
    assert "1/2" in arms and "merge/ties" in arms
    assert "4/10" in score and "rows" in score


def test_a_reader_that_went_away_does_not_stop_the_work() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with shown_progress(Closed(), every=0.0) as progress:
        progress.start("experts", 2)
        progress.advance()


def test_work_that_nobody_watches_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    SILENT.start("experts", 3)
    SILENT.advance(note="x")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
