"""Children of the agent: forked for a session, or ahead of it, with pipes or a terminal."""

import errno
import os
import resource
import select
import signal
import time
from collections.abc import Callable

import pytest

from twofold.errors import CommandNotFound
from twofold.guest import boot
from twofold.guest import child as child_module
from twofold.guest.child import Child, Spare, fork


def echo(order: bytes) -> None:
    os.write(1, b"got " + order)


def said(fd: int, timeout_s: float = 10.0) -> bytes:
    """All that comes until the other end is closed, or a terminal hung up."""
    data, end = b"", time.monotonic() + timeout_s
    while select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
        try:
            block = os.read(fd, 65536)
        except OSError:
            return data
        if not block:
            return data
        data += block
    raise AssertionError(f"not ended after {timeout_s:.0f} s; said {data!r}")


def end(child: Child) -> int:
    for fd in (*child.ends, child.error_fd):
        os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def leaves_nothing(work: Callable[[], None]) -> None:
    before = open_descriptors()
    work()
    assert open_descriptors() <= before  # others' garbage may go meanwhile


def test_a_child_says_its_error_on_a_pipe_of_its_own() -> None:
    def body() -> None:
        os.write(2, b"stderr")
        raise CommandNotFound("no such command")

    def work() -> None:
        child = fork(body)
        assert b"no such command" in said(child.error_fd)
        assert said(child.ends[2]) == b"stderr"
        assert end(child) == 127

    leaves_nothing(work)


def test_a_spare_runs_the_order_it_is_given() -> None:
    order = b"line\n" * 100_000  # more than a pipe holds

    def work() -> None:
        child = Spare(echo).give(order)
        assert child is not None
        assert said(child.ends[1]) == b"got " + order
        assert said(child.error_fd) == b""
        assert end(child) == 0

    leaves_nothing(work)


def test_a_spare_takes_a_terminal_that_came_later() -> None:
    def body(order: bytes) -> None:
        rows = os.get_terminal_size(0).lines
        os.write(1, b"%s %d %d" % (os.ttyname(2).encode(), rows, os.tcgetpgrp(0) == os.getpid()))

    def work() -> None:
        child = Spare(body).give(b"{}", size={"rows": 33, "cols": 99})
        assert child is not None
        name, rows, leads = said(child.ends[1]).split()
        assert name.startswith(b"/dev/pts/")
        assert (rows, leads) == (b"33", b"1")
        assert end(child) == 0

    leaves_nothing(work)


def test_a_spare_that_was_killed_is_none() -> None:
    def work() -> None:
        spare = Spare(echo)
        child = spare._child
        os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
        assert spare.give(b"{}") is None

    leaves_nothing(work)


def test_a_spare_without_a_terminal_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(size: object) -> None:
        raise OSError(errno.ENOSPC, "no more terminals")

    monkeypatch.setattr(child_module, "_open_terminal", refused)

    def work() -> None:
        spare = Spare(echo)
        pid = spare._child.pid
        assert spare.give(b"{}", size={}) is None
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    leaves_nothing(work)


def test_a_spare_whose_agent_is_gone_ends() -> None:
    spare = Spare(echo)
    os.close(spare._order_fd)
    assert said(spare._child.ends[1]) == b""
    assert end(spare._child) == 0


def test_pages_of_its_own_cost_no_faults_later() -> None:
    """Of 1,000 pages that are written to after a fork, by whoever goes on."""
    memory = bytearray(1000 * 4096)

    def faults(prepare: Callable[[], None]) -> int:
        read, write = os.pipe()
        pid = os.fork()  # shares all of it
        if pid == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        try:
            prepare()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for at in range(0, len(memory), 4096):
                memory[at] ^= 1
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        finally:
            os.close(write)
            os.close(read)
            os.waitpid(pid, 0)

    assert faults(lambda: None) >= 1000
    assert faults(boot.own_pages) < 100
