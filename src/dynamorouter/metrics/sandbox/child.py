"""What the sandbox starts: it locks itself in, reads a program and its tests, runs them and says how it went.

Run as a script by ``runner.run_tests`` under ``python -I -S``, inside ``bwrap`` or without it, so nothing but the
standard library is imported here. The order matters: limits, then what needs the freedom to be set up, and the program
only after all of it.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_FILTER = 22, 38, 2
_ALLOW, _REFUSE, _NO_SUCH_CALL = 0x7FFF0000, 0x00050001, 0x00050026
_DETAIL = 500

# System calls that are refused, by name and number: network, new processes and threads, signals to others, changes of
# owners and modes (Landlock leaves those alone), memory that no limit counts, and ways around this filter.
_X86_64 = {
    "socket": 41, "connect": 42, "accept": 43, "sendto": 44, "bind": 49, "listen": 50, "socketpair": 53, "clone": 56,
    "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93,
    "lchown": 94, "ptrace": 101, "setpgid": 109, "setsid": 112, "shmget": 29, "semget": 64, "msgget": 68,
    "rt_sigqueueinfo": 129, "utime": 132, "mount": 165, "umount2": 166, "setxattr": 188, "lsetxattr": 189,
    "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199, "tkill": 200, "tgkill": 234,
    "utimes": 235, "mq_open": 240, "add_key": 248, "keyctl": 250, "fchownat": 260, "futimesat": 261, "fchmodat": 268,
    "unshare": 272, "utimensat": 280, "rt_tgsigqueueinfo": 297, "perf_event_open": 298, "prlimit64": 302, "setns": 308,
    "process_vm_readv": 310, "process_vm_writev": 311, "memfd_create": 319, "bpf": 321, "execveat": 322,
    "userfaultfd": 323, "truncate": 76,
}  # fmt: skip
_AARCH64 = {
    "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16,
    "umount2": 39, "mount": 40, "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55, "utimensat": 88,
    "unshare": 97, "ptrace": 117, "kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "setpgid": 154,
    "setsid": 157, "mq_open": 180, "msgget": 186, "semget": 190, "shmget": 194, "socket": 198, "socketpair": 199,
    "bind": 200, "listen": 201, "accept": 202, "connect": 203, "sendto": 206, "add_key": 217, "keyctl": 219,
    "clone": 220, "execve": 221, "rt_tgsigqueueinfo": 240, "perf_event_open": 241, "prlimit64": 261, "setns": 268,
    "process_vm_readv": 270, "process_vm_writev": 271, "memfd_create": 279, "bpf": 280, "execveat": 281,
    "userfaultfd": 282, "truncate": 45,
}  # fmt: skip
_NEWER = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "pidfd_open": 434, "pidfd_getfd": 438,
    "fchmodat2": 452,
}  # fmt: skip
_CLONE3 = 435
_MACHINES = {"x86_64": (0xC000003E, _X86_64), "aarch64": (0xC00000B7, _AARCH64)}

# Landlock's rights that change files, by the version of its interface that brought them; execution is among them.
_WRITES = {1: 0b1_1111_1111_0011, 2: 1 << 13, 3: 1 << 14}
_FILE_WRITES = (1 << 1) | (1 << 14)


def limit(seconds: int, memory: int, file_bytes: int) -> None:
    """Set what the kernel holds a process to whatever the program does."""
    import resource  # not there on Windows, where this module is imported with its package but never run

    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: 32,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_AS: memory,
    }
    for name, value in limits.items():
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # At the soft limit on time comes a signal that says so, at the hard one a kill that looks like any other.
        most = value + 1 if name == resource.RLIMIT_CPU and hard == resource.RLIM_INFINITY else value
        try:
            resource.setrlimit(name, (value, most))
        except (ValueError, OSError):
            # macOS refuses a limit on address space; the report of protection says which limits hold there.
            if sys.platform == "linux":
                raise


def no_network(libc: Any) -> bool:
    """Move to a network namespace without any interface; whether that was allowed."""
    return sys.platform == "linux" and bool(libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0)


def writes_only_in(folder: str, libc: Any) -> bool:
    """Forbid by Landlock to change or execute any file outside ``folder``; whether the kernel can, truncation included.

    Kernels before Linux 6.2 leave truncation alone: what they can forbid is forbidden, and the answer is no.
    """
    if sys.platform != "linux":
        return False
    version = libc.syscall(444, None, 0, 1)
    if version < 1:
        return False
    handled = sum(rights for since, rights in _WRITES.items() if since <= version)
    attribute = ctypes.create_string_buffer(struct.pack("Q", handled))
    rules = libc.syscall(444, attribute, 8, 0)
    if rules < 0:
        return False
    for path, rights in ((folder, handled & ~1), (os.devnull, handled & _FILE_WRITES)):
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, beneath))
        if libc.syscall(445, rules, 1, rule, 0) != 0:
            return False
        os.close(beneath)
    done = libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and libc.syscall(446, rules, 0) == 0
    os.close(rules)
    return bool(done) and version >= 3


def filter_calls(libc: Any) -> bool:
    """Have the kernel refuse the listed system calls; whether it can, and the numbers of this machine are known."""
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return False
    architecture, calls = _MACHINES[platform.machine()]
    numbers = sorted({*calls.values(), *_NEWER.values()})
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    count = len(numbers)
    # Jumps are relative: over the rest of the list to the refusal, which stands last.
    code = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, _REFUSE), (load, 0, 0, 0)]
    code += [(at_least, count + 3, 0, 0x40000000), (equal, 0, 1, _CLONE3), (give, 0, 0, _NO_SUCH_CALL)]
    code += [(equal, count - i, 0, number) for i, number in enumerate(numbers)]
    code += [(give, 0, 0, _ALLOW), (give, 0, 0, _REFUSE)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(program)))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_FILTER, header, 0, 0) == 0)


_FORBIDDEN = (
    "socket.", "subprocess.", "os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.kill", "pty.",
    "ctypes.", "_posixsubprocess", "signal.pthread_kill",
)  # fmt: skip
_CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
            "os.chown", "os.utime", "os.setxattr", "os.removexattr", "os.lockf", "os.mkfifo")  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def guard(folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    """Return an audit hook that refuses network, processes, and changes to files outside ``folder``.

    It stands behind the kernel's guards, and alone where there are none; code that sets out to can get around it.
    """
    inside = os.path.realpath(folder) + os.sep
    realpath, fspath, fsdecode = os.path.realpath, os.fspath, os.fsdecode

    def allowed(path: Any) -> bool:
        if isinstance(path, int):
            return True
        resolved = realpath(fsdecode(fspath(path)))
        return resolved == os.devnull or (resolved + os.sep).startswith(inside)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITING and path is not None and not allowed(path):
                raise PermissionError(f"the sandbox lets nothing be written outside its folder: {path!r}")
        elif event.startswith(_FORBIDDEN):
            raise PermissionError(f"the sandbox allows no {event}")
        elif event in _CHANGES:
            paths = [value for value in arguments if isinstance(value, (str, bytes, os.PathLike))]
            if not all(map(allowed, paths)) or any(isinstance(value, int) and value > 2 for value in arguments[2:]):
                raise PermissionError(f"the sandbox allows no {event} outside its folder")

    return hook


def lock_in(folder: str, limits: dict[str, int], *, isolated: bool) -> dict[str, bool]:
    """Set up every guard that there is, and return which are in force; ``isolated`` is a process without a network."""
    limit(limits["seconds"], limits["memory"], limits["file_bytes"])
    libc = ctypes.CDLL(None, use_errno=True)
    guards = {
        "network_namespace": isolated or no_network(libc),
        "landlock": writes_only_in(folder, libc),
        "seccomp": filter_calls(libc),
    }
    sys.addaudithook(guard(folder))
    return guards


def run(code: str, setup: str, tests: list[str]) -> dict[str, Any]:
    """Run a program, then its tests one by one up to the first that fails.

    As in the usual harnesses, which call ``exec`` with an empty space, ``__name__`` is that of the built-ins: what a
    program does under ``if __name__ == "__main__":`` is no part of the answer.
    """
    passed = 0
    space: dict[str, Any] = {"__builtins__": __builtins__}
    stage = "program"
    try:
        exec(compile(code, "<program>", "exec", dont_inherit=True), space)
        stage = "setup"
        exec(compile(setup, "<setup>", "exec", dont_inherit=True), space)
        for number, test in enumerate(tests, start=1):
            stage = f"test {number}"
            exec(compile(test, f"<test {number}>", "exec", dont_inherit=True), space)
            passed += 1
    except MemoryError:
        return {"outcome": "memory", "passed": passed, "detail": f"{stage}: MemoryError"}
    except AssertionError as error:
        outcome = "failed" if stage.startswith("test") else "error"
        return {"outcome": outcome, "passed": passed, "detail": f"{stage}: AssertionError: {error}"[:_DETAIL]}
    except BaseException as error:  # what a program raises, SystemExit included, is its failure and not the sandbox's
        return {"outcome": "error", "passed": passed, "detail": _line(stage, error)}
    return {"outcome": "passed", "passed": passed, "detail": ""}


def _line(stage: str, error: BaseException) -> str:
    try:
        return f"{stage}: {type(error).__name__}: {error}"[:_DETAIL]
    except Exception:  # the message itself was the program's to make
        return f"{stage}: {type(error).__name__}"


def main() -> None:
    """Lock in, read the job from standard input, run it, and write what became of it where standard output was."""
    job = json.loads(sys.stdin.buffer.read())
    report = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    word = job.pop("word")
    guards = lock_in(str(Path.cwd()), job["limits"], isolated=job["isolated"])
    outcome = {"guards": guards} if job["code"] is None else run(job["code"], job["setup"], job["tests"])
    # The word proves that this line was reached: a program that leaves early, or prints "passed", does not know it.
    os.write(report, json.dumps({"word": word, **outcome}).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
