"""Runs a generated program against its tests in a process of its own, with limits on time, memory, files and network.

Where ``bubblewrap`` is installed and may make namespaces, the process starts inside it; the guards that it sets up
itself hold either way. What holds, and what does not, is in ``docs/metrics.md``; ``protection()`` says what this
machine has. A verdict is only ``passed`` when all tests were reached and none failed.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal

from dynamorouter.errors import ConfigError, DataError
from dynamorouter.metrics.sandbox import bubblewrap

Outcome = Literal["passed", "failed", "error", "timeout", "memory", "crashed"]
Isolation = Literal["bubblewrap", "kernel"]
"""What keeps a program in: namespaces made by ``bwrap`` and the guards within, or those guards alone."""
_REPORT_BYTES = 64 * 1024
_CHILD = Path(__file__).resolve().with_name("child.py")
_NO_PROGRAM: Mapping[str, Any] = {"code": None, "setup": "", "tests": []}
"""The job that sets up the guards and runs nothing."""
_PYTHON_FLAGS = ("-I", "-S", "-B")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: of processor time, whole ones, tests included; they do not depend on what else the machine does.
        wall_seconds: from start to end; ends programs that wait, so it may be generous.
        memory_mb: address space in MiB, the interpreter included.
        file_kb: largest file in KiB.
    """

    seconds: int = 5
    wall_seconds: float = 20.0
    memory_mb: int = 512
    file_kb: int = 1024

    def __post_init__(self) -> None:
        """Check all values at once.

        Raises:
            ConfigError: one is too small to start an interpreter in.
        """
        least = {"seconds": 1, "wall_seconds": 0.1, "memory_mb": 64, "file_kb": 1}
        too_small = [f"{name} is {value}, at least {low} is needed" for name, low in least.items()
                     if not (value := getattr(self, name)) >= low]  # fmt: skip
        if too_small:
            raise ConfigError("limits of the sandbox: " + "; ".join(too_small))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a program.

    Attributes:
        outcome: ``passed``; a test ``failed``; an ``error`` was raised; ``timeout``; out of ``memory``; or ``crashed``:
            the process ended before the last test had run.
        tests_passed: how many tests passed before that; 0 where the process did not say.
        detail: the error's own words, cut to 500 characters.
        seconds: wall time.
    """

    outcome: Outcome
    tests_passed: int
    detail: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every test passed."""
        return self.outcome == "passed"


@dataclass(frozen=True, slots=True)
class Protection:
    """Which guards are in force around a program; all behind limits and an audit hook.

    Attributes:
        bubblewrap: it sees no files but the interpreter's and its own folder, and no process but its own.
        network_namespace: it is in a network without interfaces.
        landlock: it can change files in its own folder alone.
        seccomp: it can open no socket, start no process or thread, and signal nobody.
    """

    bubblewrap: bool
    network_namespace: bool
    landlock: bool
    seccomp: bool

    @property
    def missing(self) -> list[str]:
        """What a program could get around, by the guard that would forbid it; bubblewrap does what Landlock does."""
        needed = ("network_namespace", "seccomp") if self.bubblewrap else ("network_namespace", "landlock", "seccomp")
        return [name.replace("_", " ") for name in needed if not getattr(self, name)]


def run_tests(
    code: str,
    tests: Sequence[str],
    *,
    setup: str = "",
    limits: Limits | None = None,
    isolation: Isolation | None = None,
) -> Verdict:
    """Run a program, then its tests, in a fresh process in a fresh folder.

    Args:
        code: the program.
        tests: statements that raise where the program is wrong, such as ``assert f(1) == 2``; at least one.
        setup: run between the program and its tests.
        limits: what it may use.
        isolation: what keeps it in; by default ``bubblewrap`` where it works, else ``kernel``.

    Raises:
        DataError: there are no tests, so that nothing would be judged.
        ConfigError: the platform has no limits for processes, or no ``bwrap`` though it is asked for.
    """
    if not tests or not all(test.strip() for test in tests):
        raise DataError(f"a program needs at least one test, none of them blank, got {list(tests)!r:.80}")
    limits = limits or Limits()
    job = {"code": code, "setup": setup, "tests": list(tests)}
    report, seconds, status = _run_job(job, limits, isolation or default_isolation())
    if report is not None:
        passed = int(report["passed"])
        outcome: Outcome = report["outcome"]
        if outcome == "passed" and passed != len(tests):
            outcome = "crashed"
        return Verdict(outcome, passed, str(report["detail"]), seconds)
    if status is None or status == -signal.SIGXCPU:
        spent = f"{limits.seconds} s of processor time, or {limits.wall_seconds} s altogether"
        return Verdict("timeout", 0, f"not done after {spent}", seconds)
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return Verdict("crashed", 0, f"the process ended with {how} before its last test had run", seconds)


@cache
def default_isolation() -> Isolation:
    """Return ``bubblewrap`` where it is installed and starts, which a container may forbid, else ``kernel``."""
    if bubblewrap.executable() is None or _run_job(_NO_PROGRAM, Limits(), "bubblewrap")[0] is None:
        return "kernel"
    return "bubblewrap"


@cache
def protection(isolation: Isolation | None = None) -> Protection:
    """Return which guards this machine has, found by setting them up around no program.

    Args:
        isolation: what keeps programs in; what ``run_tests`` takes by default.

    Raises:
        ConfigError: no sandbox starts here.
    """
    isolation = isolation or default_isolation()
    report, _, status = _run_job(_NO_PROGRAM, Limits(), isolation)
    if report is None:
        raise ConfigError(f"the sandbox does not start on this machine (exit status {status}); run pass@k elsewhere")
    return Protection(bubblewrap=isolation == "bubblewrap", **report["guards"])


def _run_job(
    job: Mapping[str, Any], limits: Limits, isolation: Isolation
) -> tuple[dict[str, Any] | None, float, int | None]:
    """Run one job; return its report if it made one, the seconds it took, and its exit status unless time ran out."""
    if os.name != "posix":
        raise ConfigError(f"the sandbox needs Linux or macOS, this is {sys.platform}; judge generated code there")
    word = secrets.token_hex(16)
    kernel_limits = {
        "seconds": limits.seconds,
        "memory": limits.memory_mb * 2**20,
        "file_bytes": limits.file_kb * 2**10,
    }
    request = {**job, "word": word, "limits": kernel_limits, "isolated": isolation == "bubblewrap"}
    start = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as stdin,
    ):
        stdin.write(json.dumps(request).encode())
        stdin.seek(0)
        process = subprocess.Popen(
            _command(folder, isolation),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            report = _read(process.stdout, start + limits.wall_seconds)
            # A program that floods the report finds nobody reading, instead of waiting until its time is up.
            process.stdout.close()
            status = _wait(process, start + limits.wall_seconds)
        finally:
            _kill(process)
    if status is not None and isolation == "bubblewrap":
        status = bubblewrap.exit_status(status)
    return _parsed(report, word), time.monotonic() - start, status


def _command(folder: str, isolation: Isolation) -> list[str]:
    """Return the command that starts a sandbox in ``folder``.

    Raises:
        ConfigError: ``bwrap`` is asked for and not installed.
    """
    if isolation == "kernel":
        return [sys.executable, *_PYTHON_FLAGS, str(_CHILD)]
    bwrap = bubblewrap.executable()
    if bwrap is None:
        raise ConfigError(
            "isolation 'bubblewrap' needs the program bwrap, which is not on the path; install bubblewrap with the "
            "system's packages, or take isolation='kernel'"
        )
    return bubblewrap.command(bwrap, _CHILD, folder=folder, flags=_PYTHON_FLAGS)


def _read(stream: IO[bytes], deadline: float) -> bytes:
    """Read until the end, the deadline, or more than any report holds."""
    report = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while len(report) <= _REPORT_BYTES and (remaining := deadline - time.monotonic()) > 0:
            if selector.select(remaining):
                chunk = os.read(stream.fileno(), _REPORT_BYTES)
                if not chunk:
                    break
                report += chunk
    return report


def _wait(process: subprocess.Popen[bytes], deadline: float) -> int | None:
    try:
        return process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the whole group: what the program may have started is in it."""
    with suppress(ProcessLookupError):  # gone already, which is what is wanted
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _parsed(report: bytes, word: str) -> dict[str, Any] | None:
    """Return the report if it is whole and carries the word that only this job was given."""
    try:
        parsed = json.loads(report)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) and parsed.get("word") == word else None
