"""Every place in a program where SIGKILL can meet it: by system call and count, through strace.

A first run under strace is recorded; a point is the N-th invocation of one call in any process of
it. ``strace -D`` lets the program stay our child while it is traced, and what the program has made
lives on as after any other kill.
"""

import contextlib
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from lone import wait_for

# What changes something outside the process, by what it changes. Reading is no news to anybody.
CALLS = {
    "processes": ("clone", "clone3", "execve", "unshare", "setns"),
    "mounts": (
        *("mount", "move_mount", "fsconfig", "fsmount", "open_tree", "mount_setattr"),
        *("pivot_root", "umount2"),
    ),
    "directories": ("mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "rename", "symlinkat"),
    "files": ("openat", "openat2", "write", "fchownat", "fchown"),
    "messages": ("sendmsg", "recvmsg", "sendto", "pidfd_send_signal", "kill"),
    "rights": ("prctl", "capset", "setresuid", "setgroups", "seccomp"),
}
_LINE = re.compile(r"^(\d+) +(\w+)\(")
# All of them at once take an hour; every so manieth is what a test can afford.
MOST = int(os.environ.get("TWOFOLD_KILL_POINTS", "12"))


def tracing(calls: Sequence[str], output: Path) -> list[str]:
    """Prefix of a command that is to be recorded."""
    traced = ",".join({*calls, "openat"})  # by a file that it opens a program says where it is
    return ["strace", "-D", "-f", "-qq", "-e", f"trace={traced}", "-o", str(output)]


def killing(call: str, number: int) -> list[str]:
    """Prefix of a command one of whose processes is killed at its ``number``-th ``call``."""
    inject = f"inject={call}:signal=KILL:when={number}"
    quiet = ("-e", f"trace={call}", "-e", "status=none", "-o", "/dev/null")
    return ["strace", "-D", "-f", "-qq", *quiet, "-e", inject]


def points(record: str, calls: Sequence[str], marker: str) -> Iterator[tuple[str, int]]:
    """(call, N) for each call that the record has, at most ``MOST`` of one, spread evenly.

    Before the first line with ``marker`` a program has only read its own code: not looked at.
    """
    counts: Counter[tuple[str, str]] = Counter()
    found: dict[str, set[int]] = {call: set() for call in calls}
    begun = False
    for line in record.splitlines():
        begun = begun or marker in line
        if match := _LINE.match(line):
            pid, call = match.groups()
            counts[pid, call] += 1
            if begun and call in found:
                found[call].add(counts[pid, call])
    for call, numbers in found.items():
        listed = sorted(numbers)
        step = max(1, -(-len(listed) // MOST))
        yield from ((call, number) for number in listed[::step])


@contextlib.contextmanager
def attached(pid: int, *flags: str) -> Iterator[None]:
    """The process and what it forks, under strace; let go at the end, if it still lives."""
    strace = subprocess.Popen(["strace", "-f", "-qq", *flags, "-p", str(pid)])
    try:
        wait_for(lambda: _is_traced(pid, strace.pid), timeout_s=20)
        yield
    finally:
        strace.send_signal(signal.SIGINT)
        try:
            strace.wait(timeout=10)
        except subprocess.TimeoutExpired:
            # It waits for a leader that is dead, whose dead thread it would have to reap first.
            strace.kill()
            strace.wait()


def _is_traced(pid: int, tracer: int) -> bool:
    try:
        return f"TracerPid:\t{tracer}" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True  # who calls all the time was traced, killed and reaped before we looked
