"""The agent while it is copied: nothing half-said, nothing lost, no credit used up."""

import os
import time
from collections.abc import Callable, Iterator

import pytest

from twofold.guest import protocol
from twofold.guest.hush import Hush
from twofold.guest.processors import Processors
from twofold.guest.session import Inlet, Outlet, Session

WINDOW = 1000
STREAM = protocol.stream_of(protocol.PAYLOAD_SESSION, protocol.STDOUT)


class Loop:
    """What a session needs of the agent."""

    window = WINDOW

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.read: set[int] = set()

    def send(self, frame: bytes) -> None:
        self.sent.append(frame)

    def forward(self, stream: int, fd: int, limit: int) -> int:
        data = os.read(fd, limit)
        self.sent.append(protocol.encode(protocol.DATA, stream, data))
        return len(data)

    def watch_read(self, fd: int, callback: Callable[[], None] | None) -> None:
        (self.read.discard if callback is None else self.read.add)(fd)

    def watch_write(self, fd: int, callback: Callable[[], None] | None) -> None:
        pass


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe2(os.O_NONBLOCK)
    yield read, write
    for fd in (read, write):
        try:
            os.close(fd)
        except OSError:
            pass


def test_what_waits_is_said_afterwards_in_order() -> None:
    said: list[bytes] = []
    hush = Hush(said.append)
    assert not hush.keeps(b"one")
    hush.begin(30)
    assert hush.keeps(b"two")
    assert hush.keeps(b"three")
    assert hush.until > 0
    hush.begin(0)
    assert said == [b"two", b"three"]
    assert not hush.keeps(b"four")


def test_it_never_lasts_for_ever() -> None:
    hush = Hush(lambda frame: None)
    hush.begin(1e9)
    assert hush.until < time.monotonic() + 601


def test_a_new_monitor_gives_output_its_whole_window(pipe: tuple[int, int]) -> None:
    """Else each copy of a copy would have less, until its payload stood still for good."""
    loop = Loop()
    outlet = Outlet(loop, STREAM, pipe[0], lambda: None)
    os.write(pipe[1], bytes(3 * WINDOW))
    outlet._pump()
    assert pipe[0] not in loop.read, "the window is used up, so nothing more is read"
    session = Session(loop, protocol.PAYLOAD_SESSION, lambda number: None)
    session.outlets[protocol.STDOUT] = outlet
    unsent = protocol.encode(protocol.DATA, STREAM, bytes(400))
    session.start_anew([unsent, protocol.encode(protocol.EOF, STREAM)])
    assert pipe[0] in loop.read
    loop.sent.clear()
    outlet._pump()
    assert sum(len(frame) - protocol.HEADER.size for frame in loop.sent) == WINDOW - 400


def test_a_new_monitor_may_send_its_whole_window(pipe: tuple[int, int]) -> None:
    loop = Loop()
    stream = protocol.stream_of(protocol.PAYLOAD_SESSION, protocol.STDIN)
    inlet = Inlet(loop, stream, pipe[1], terminal=False)
    filled = 0
    try:
        while True:
            filled += os.write(pipe[1], bytes(4096))
    except BlockingIOError:
        pass
    inlet.put(bytes(WINDOW))
    with pytest.raises(protocol.ProtocolError, match="window"):
        inlet.put(b"x")
    inlet.start_anew()
    inlet.put(bytes(WINDOW))  # would end the machine, were it not so
    while filled:
        filled -= len(os.read(pipe[0], filled))
    inlet._flush()
    granted = sum(
        protocol.decode_credit(frame[protocol.HEADER.size :])
        for frame in loop.sent
        if frame[0] == protocol.CREDIT
    )
    assert granted == 2 * WINDOW, "each byte that was taken may be sent again, once"


def test_nobody_runs_meanwhile() -> None:
    class Held(Processors):
        def hold(self, until: float) -> None:
            self.held = True
            assert until > time.monotonic()

        def release(self) -> None:
            self.held = False

    hush = Hush(lambda frame: None, Held(by_network=False))
    hush.begin(30)
    assert hush.sleepless
    assert hush.keeps(b"one")
    hush.let_others_run()
    assert not hush.sleepless
    assert hush.keeps(b"two"), "but still nothing is said"
    hush.begin(30)
    hush.end()
    assert not hush.sleepless
