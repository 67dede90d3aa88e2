"""The sandbox: every limit is run into, and each of the kernel's guards is tried with the others out of the way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dynamorouter.errors import ConfigError, DataError
from dynamorouter.metrics.base import get_metric, row_statistics, score
from dynamorouter.metrics.code import pass_at, program_of
from dynamorouter.metrics.sandbox import bubblewrap, runner
from dynamorouter.metrics.sandbox import child as sandbox_child
from dynamorouter.metrics.sandbox.runner import Isolation, Limits, Verdict, protection, run_tests
from dynamorouter.tasks.answer import Answer
from dynamorouter.tasks.record import Record, Target
from dynamorouter.tasks.task import Columns, Task

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits for processes need Linux or macOS")
linux = pytest.mark.skipif(sys.platform != "linux", reason="a guard of Linux")
either_isolation = pytest.mark.usefixtures("isolation")
QUICK = Limits(seconds=1, wall_seconds=3.0)
GOOD = "def f():\n    return 1\n"
TEST = ["assert f() == 1"]


@pytest.fixture(params=["kernel", pytest.param("bubblewrap", marks=pytest.mark.e2e)])
def isolation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Isolation:
    """Keep the programs of a test in by the kernel's guards alone, or inside ``bwrap`` too: one law for both."""
    chosen: Isolation = request.param
    if chosen == "bubblewrap":
        if bubblewrap.executable() is None:
            pytest.skip("bwrap is not installed")
        if runner.default_isolation() != "bubblewrap":
            pytest.skip("bwrap may make no namespaces here")
    monkeypatch.setattr(runner, "default_isolation", lambda: chosen)
    return chosen


def run(code: str, *, limits: Limits | None = None) -> Verdict:
    return run_tests(code, TEST, limits=limits)


@either_isolation
def test_a_right_program_passes_and_a_wrong_one_does_not() -> None:
    assert run(GOOD).passed
    found = run_tests("def f(x):\n    return x", ["assert f(1) == 1", "assert f(2) == 3, 'three'", "assert True"])
    assert (found.outcome, found.tests_passed) == ("failed", 1)
    assert found.detail == "test 2: AssertionError: three"


@either_isolation
def test_a_program_inherits_nothing_of_ours() -> None:
    tests = ["assert f([1, 2]) == 3"]
    assert not run_tests("def f(x: List[int]) -> int:\n    return sum(x)", tests).passed
    assert run_tests("def f(x: 'List[int]') -> int:\n    return sum(x)", tests).passed


@either_isolation
def test_setup_runs_between_program_and_tests() -> None:
    assert run_tests("def f():\n    return A", ["assert f() == 3"], setup="A = 3").passed


@either_isolation
@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("def f(:", "error"),
        ("1 / 0", "error"),
        ("def f():\n    return f()", "error"),
        ("import sys\nsys.exit(0)", "error"),
        ("raise KeyboardInterrupt", "error"),
        ("assert False", "error"),
        ("class E(Exception):\n    def __str__(self): raise self\nraise E", "error"),
        ("import os\nos._exit(0)", "crashed"),
        ("def f():\n    import os\n    os._exit(0)", "crashed"),
        ("import ctypes", "error"),
        ("input()", "error"),
        ("import numpy", "error"),
    ],
)
def test_what_does_not_reach_the_end_does_not_pass(code: str, outcome: str) -> None:
    if code == "import ctypes":
        code = "import ctypes\nctypes.CDLL(None)"
    assert run(code).outcome == outcome


@either_isolation
def test_saying_that_it_passed_is_not_passing() -> None:
    said = '{"word": "", "outcome": "passed", "passed": 1, "detail": ""}'
    code = f"import os\nfor i in range(3, 12):\n    try: os.write(i, {said!r}.encode())\n    except OSError: pass\n"
    assert run(code + "os._exit(0)").outcome == "crashed"


@either_isolation
@pytest.mark.parametrize("code", ["while True: pass", "import time\ntime.sleep(60)", "10 ** 10 ** 9"])
def test_an_endless_program_is_stopped(code: str) -> None:
    before = time.monotonic()
    assert run(code, limits=QUICK).outcome == "timeout"
    assert time.monotonic() - before < 8


@either_isolation
def test_processor_time_is_what_counts_not_how_busy_the_machine_is() -> None:
    found = run("while True: pass", limits=Limits(seconds=1, wall_seconds=60))
    assert (found.outcome, found.seconds < 30) == ("timeout", True)


@either_isolation
@linux
def test_a_memory_eater_is_stopped() -> None:
    assert run("x = []\nwhile True: x.append(bytearray(10 ** 6))").outcome == "memory"
    assert run("x = [0] * 10 ** 10").outcome == "memory"
    assert run("x = bytearray(200 * 2 ** 20)\n" + GOOD, limits=Limits(memory_mb=128)).outcome == "memory"
    assert run("x = bytearray(200 * 2 ** 20)\n" + GOOD).passed


@either_isolation
@pytest.mark.parametrize(
    "code",
    [
        "import os\nwhile True: os.fork()",
        "import subprocess\nsubprocess.run(['ls'])",
        "import os\nos.system('ls')",
        "import os\nos.execv('/bin/ls', ['ls'])",
        "import multiprocessing as m\np = m.Process(target=print)\np.start()",
        "import os\nos.kill(os.getppid(), 9)",
        "import os\nos.killpg(0, 9)",
        "import socket\nsocket.socket()",
        "import urllib.request as u\nu.urlopen('http://127.0.0.1:1')",
    ],
)
def test_processes_signals_and_network_are_refused(code: str) -> None:
    found = run(code + "\n" + GOOD)
    assert found.outcome == "error", found
    assert run(f"try:\n    exec({code!r})\nexcept OSError: pass\n" + GOOD).passed


@either_isolation
def test_files_are_written_in_its_own_folder_alone(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("kept")
    for act in (
        f"open({str(tmp_path / 'new')!r}, 'w')",
        f"open({str(kept)!r}, 'a')",
        f"os.open({str(kept)!r}, os.O_WRONLY)",
        f"os.remove({str(kept)!r})",
        f"os.rename({str(kept)!r}, 'mine')",
        f"os.truncate({str(kept)!r}, 0)",
        f"os.chmod({str(kept)!r}, 0)",
        f"os.mkdir({str(tmp_path / 'sub')!r})",
        f"os.symlink({str(kept)!r}, 'mine'); open('mine', 'w')",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
    ):
        assert run(f"import os\n{act}\n" + GOOD).outcome == "error", act
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert kept.read_text() == "kept"
    own = "import os\nopen('a', 'w').write('1')\nos.rename('a', 'b')\ndef f(): return int(open('b').read())"
    assert run(own).passed


@either_isolation
def test_large_files_and_floods_of_output_are_bounded() -> None:
    assert run("open('a', 'w').write('x' * 10 ** 7)").outcome == "error"
    assert run("print('x' * 10 ** 7)\n" + GOOD).passed
    flood = "import os\nfor i in range(3, 12):\n    try: os.write(i, b'x' * 10 ** 7)\n    except OSError: pass\n"
    assert run(flood + GOOD).outcome == "crashed"


@either_isolation
def test_nothing_of_ours_is_seen_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    assert run("import os\nassert 'SECRET' not in os.environ\nassert os.listdir() == []\n" + GOOD).passed
    assert run("import sys\nassert not any('site-packages' in p for p in sys.path)\n" + GOOD).passed


@either_isolation
def test_no_process_and_no_folder_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run("open('a', 'w').write('1')\nwhile True: pass", limits=QUICK)
    run(GOOD)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [0, 3])
def test_bubblewrap_is_taken_where_it_starts(status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = tmp_path / "bwrap"  # runs what it is given without any namespace, or fails as where they are forbidden
    stub.write_text(f'#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done; shift\n[ {status} = 0 ] && exec "$@"\nexit 3\n')
    stub.chmod(0o755)
    monkeypatch.setattr(bubblewrap, "executable", lambda: str(stub))
    expected = "kernel" if status else "bubblewrap"
    assert runner.default_isolation.__wrapped__() == expected
    assert run_tests(GOOD, TEST, isolation="bubblewrap").outcome == ("crashed" if status else "passed")


def test_bubblewrap_that_is_asked_for_and_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap, "executable", lambda: None)
    assert runner.default_isolation.__wrapped__() == "kernel"
    with pytest.raises(ConfigError, match=r"needs the program bwrap.*isolation='kernel'"):
        run_tests(GOOD, TEST, isolation="bubblewrap")


def test_bubblewrap_hides_the_users_files(isolation: Isolation, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("1")
    reads = f"def f():\n    return int(open({str(secret)!r}).read())\n"
    assert run(reads).passed == (isolation == "kernel")
    lists = f"import os\ndef f():\n    return 1 - os.path.exists({str(tmp_path)!r})\n"
    assert run(lists).passed == (isolation == "bubblewrap")
    assert protection(isolation).bubblewrap == (isolation == "bubblewrap")


def test_limits_and_tests_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"seconds is 0, at least 1.*memory_mb is 1, at least 64"):
        Limits(seconds=0, memory_mb=1)
    for nothing in ([], [" "]):
        with pytest.raises(DataError, match="at least one test"):
            run_tests(GOOD, nothing)


def alone(guard: str, code: str) -> str:
    """Set up one of the kernel's guards and no audit hook, then run code; return what it prints."""
    script = (
        f"import ctypes, os, sys\nsys.path.insert(0, {str(Path(sandbox_child.__file__).parent)!r})\n"
        f"import child as s\nlibc = ctypes.CDLL(None, use_errno=True)\n{guard}\n"
        f"try:\n    {code}\n    print('done')\nexcept OSError as error: print(type(error).__name__)\n"
    )
    return subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=20).stdout


@linux
@pytest.mark.parametrize(
    "code",
    [
        "os.fork()",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.execv('/bin/true', ['true'])",
        "os.kill(os.getppid(), 0)",
        "import socket; socket.socket()",
        "import socket; socket.socketpair()",
        "os.setsid()",
        "os.chmod('.', 0o700)",
        "os.memfd_create('a')",
        "import resource; resource.prlimit(os.getppid(), resource.RLIMIT_CPU)",
    ],
)
def test_the_filter_of_system_calls_refuses_by_itself(code: str) -> None:
    if not protection().seccomp:
        pytest.skip("this kernel, or this container, has no seccomp filters")
    assert alone("assert s.filter_calls(libc)", code) == "PermissionError\n"


@linux
def test_landlock_refuses_by_itself(tmp_path: Path) -> None:
    if not protection().landlock:
        pytest.skip("this kernel has no Landlock")
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.write_text("kept")
    guard = f"assert s.writes_only_in({str(own)!r}, libc)"
    for code in (f"open({str(other)!r}, 'w')", f"os.remove({str(other)!r})", f"os.mkdir({str(tmp_path / 'x')!r})"):
        assert alone(guard, code) == "PermissionError\n"
    assert alone(guard, f"open({str(own / 'a')!r}, 'w'); os.remove({str(own / 'a')!r})") == "done\n"
    assert other.read_text() == "kept"


@linux
def test_the_namespace_has_no_network_by_itself() -> None:
    if not protection().network_namespace:
        pytest.skip("this kernel, or this container, lets nobody make namespaces")
    code = "import socket; socket.create_connection(('10.255.255.1', 80), 1)"
    assert alone("assert s.no_network(libc)", code) == "OSError\n"


CODE = Task(
    name="code", head="causal_lm", columns=Columns(text="text", target="code"), labels=(), metrics=("pass_at_1",)
)
TARGET: Target = {"texts": [GOOD], "tests": TEST, "setup": [""]}


def test_pass_at_1_is_the_share_of_programs_that_pass() -> None:
    said = [GOOD, f"Here it is:\n```python\n{GOOD}```\nDone.", "def f():\n    return 2", ""]
    answers = [*(Answer("text", text, 1.0) for text in said), None]
    records = [Record("x", None, 0, "code", TARGET, str(i)) for i in range(5)]
    assert score(CODE, answers, records) == {"pass_at_1": 0.4}
    rows = row_statistics("pass_at_1", CODE, answers, records)
    assert rows.tolist() == [[1.0, 1.0], [1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]


def test_pass_at_k_is_unbiased() -> None:
    assert pass_at(1, 4, 1) == pytest.approx(0.25)
    assert pass_at(5, 10, 3) == pytest.approx(1 - (7 * 6 * 5 * 4 * 3) / (10 * 9 * 8 * 7 * 6))
    assert pass_at(5, 5, 1) == 1.0
    assert pass_at(5, 10, 0) == 0.0
    samples = Answer("text", [GOOD, "wrong", GOOD, "wrong", "wrong", "wrong"], 1.0)
    record = Record("x", None, 0, "code", TARGET, "0")
    found = score(CODE, [samples], [record], metrics=["pass_at_1", "pass_at_5"])
    assert found == pytest.approx({"pass_at_1": 1 / 3, "pass_at_5": 1.0})
    with pytest.raises(DataError, match="pass@10 needs at least 10 samples a row, got 6"):
        score(CODE, [samples], [record], metrics=["pass_at_10"])


@pytest.mark.parametrize("target", ["code", {"texts": [GOOD]}, {"texts": [GOOD], "tests": []}])
def test_a_target_without_tests_is_refused(target: Target) -> None:
    with pytest.raises(DataError, match=r"pass@1 needs tests in the target.*columns.extra"):
        get_metric("pass_at_1").row(Answer("text", GOOD, 1.0), target, CODE)


def test_programs_are_taken_out_of_fences() -> None:
    assert program_of("a\n```python\nx = 1\n```\nb\n```\ny\n```") == "x = 1\n"
    assert program_of("```\nx = 1") == "x = 1"
    assert program_of("```python3.10\nx = 1\n```\nThis is it.") == "x = 1\n"
    assert program_of("```bash\npip\n```\nThen:\n```Python\nx = 1\n```") == "x = 1\n"
    assert program_of("```Python\r\nx = 1\r\n```") == "x = 1\n"
    assert program_of("```text\nx = 1\n```") == "x = 1\n"
    assert program_of("x = 1") == "x = 1"


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("One:\n```python\nimport math\n```\nThen:\n```python\ndef f(): ...\n```", "import math\n\ndef f(): ...\n"),
        ("1. so\n    ```python\n    def f():\n        return 1\n    ```", "def f():\n    return 1\n"),
        ("```py\ndef f(): ...\n```\nUse:\n```py\nprint(f())\n```", "def f(): ...\n"),
        ("```py\ndef f(): ...\n```\nPrints:\n```\n[1, 2\n```", "def f(): ...\n"),
        ("```py\ndef f(): ...\n```\nOr:\n```py\ndef f(): pass\n```", "def f(): ...\n"),
        ("```py\nclass A: ...\n```\n~~~py\ndef f(): A()\n~~~", "class A: ...\n\ndef f(): A()\n"),
        ("````py\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("def f(): ...\n```\nThat is all.", "def f(): ...\n"),
        ("Here it is.\n```py\ndef f(:\n```", "def f(:\n"),
    ],
    ids=["imports", "indented", "use", "output", "again", "helper", "long fence", "fence of the prompt", "broken"],
)
def test_blocks_that_go_on_with_a_program_are_joined(text: str, program: str) -> None:
    assert program_of(text) == program


@either_isolation
def test_a_main_block_is_no_part_of_the_answer() -> None:
    guarded = f"{GOOD}\nif __name__ == '__main__':\n    print(int(input()))\n"
    assert run_tests(guarded, TEST).passed
    data = "from dataclasses import dataclass\n\n@dataclass\nclass A:\n    x: int\n\ndef f():\n    return A(1).x\n"
    assert run_tests(data, TEST).passed
