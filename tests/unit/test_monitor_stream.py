"""Pumps between descriptors that are not ours and the guest: bounded, binary-safe, stoppable."""

import os
import threading
import time
from collections.abc import Callable

from twofold.hypervisor.monitor_loop import Loop
from twofold.hypervisor.monitor_stream import Intake, Outlet


def eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 5
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


class Sink:
    """Records what an outlet tells."""

    def __init__(self, fd: int, window: int = 1000) -> None:
        self.written, self.gone, self.done = 0, 0, 0
        self.outlet = Outlet(fd, window=window, wrote=self._wrote, gone=self._gone, done=self._done)

    def _wrote(self, count: int) -> None:
        self.written += count

    def _gone(self) -> None:
        self.gone += 1

    def _done(self) -> None:
        self.done += 1


def test_intake_reads_no_further_than_its_credit() -> None:
    read, write = os.pipe()
    received: list[bytes] = []
    intake = Intake(read, received.append, credit=10)
    os.write(write, b"0123456789abcdef")
    intake.start()
    assert eventually(lambda: b"".join(received) == b"0123456789")
    time.sleep(0.02)
    assert b"".join(received) == b"0123456789"
    intake.grant(3)
    assert eventually(lambda: b"".join(received) == b"0123456789abc")
    intake.grant(100)
    os.close(write)
    assert eventually(lambda: received[-1] == b"")
    assert b"".join(received) == b"0123456789abcdef"


def test_a_stopped_intake_leaves_the_rest_to_others_and_closes() -> None:
    read, write = os.pipe()
    other = os.dup(read)
    received: list[bytes] = []
    intake = Intake(read, received.append, credit=100)
    intake.start()
    time.sleep(0.02)
    intake.stop()
    assert eventually(lambda: not _is_open(read))
    os.write(write, b"for the shell")
    assert os.read(other, 100) == b"for the shell"
    assert received == []
    os.close(write)
    os.close(other)


def test_an_intake_that_never_started_closes_its_descriptor() -> None:
    read, write = os.pipe()
    Intake(read, lambda data: None, credit=1).stop()
    assert not _is_open(read)
    os.close(write)


def test_outlet_writes_everything_and_says_when() -> None:
    read, write = os.pipe()
    sink = Sink(write)
    assert sink.outlet.put(b"abc")
    assert sink.outlet.put(b"def")
    sink.outlet.finish()
    assert eventually(lambda: sink.done == 1)
    assert sink.written == 6
    with os.fdopen(read, "rb") as file:
        assert file.read() == b"abcdef"


def test_outlet_refuses_more_than_its_window() -> None:
    read, write = os.pipe()
    _fill(write)
    sink = Sink(write, window=100)
    assert sink.outlet.put(b"x" * 60)
    assert not sink.outlet.put(b"x" * 60)
    assert sink.outlet.put(b"x" * 40)
    os.close(read)
    assert eventually(lambda: sink.gone == 1)


def test_a_reader_that_goes_away_turns_the_outlet_into_a_sink() -> None:
    read, write = os.pipe()
    sink = Sink(write)
    os.close(read)
    assert sink.outlet.put(b"x" * 10)
    assert eventually(lambda: sink.gone == 1)
    assert sink.outlet.put(b"x" * 900)
    assert eventually(lambda: sink.written == 910)
    sink.outlet.finish()
    assert eventually(lambda: sink.done == 1)
    assert not _is_open(write)


def test_a_stalled_outlet_holds_up_no_thread_but_its_own() -> None:
    read, write = os.pipe()
    _fill(write)
    sink = Sink(write)
    started = time.monotonic()
    sink.outlet.put(b"x")
    sink.outlet.finish()
    assert time.monotonic() - started < 1
    assert sink.done == 0
    os.close(read)
    assert eventually(lambda: sink.done == 1)


def test_without_a_descriptor_everything_is_swallowed() -> None:
    sink = Sink(-1)
    assert sink.outlet.put(b"x" * 999)
    assert sink.written == 999
    sink.outlet.finish()
    assert sink.done == 1


def test_no_wake_up_is_lost() -> None:
    """Threads that post while the loop goes to sleep: each post is run."""
    loop, count, each = Loop(), 0, 3000

    def bump() -> None:
        nonlocal count
        count += 1

    def poster() -> None:
        for _ in range(each):
            loop.post(bump)

    threads = [threading.Thread(target=poster) for _ in range(4)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 20
    while count < 4 * each and time.monotonic() < end:
        loop.turn(1.0)
    for thread in threads:
        thread.join()
    assert count == 4 * each


def _fill(fd: int) -> None:
    os.set_blocking(fd, False)
    try:
        while True:
            os.write(fd, bytes(65536))
    except BlockingIOError:
        os.set_blocking(fd, True)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
