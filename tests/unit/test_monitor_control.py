"""The monitor's line to QEMU: why QEMU has stopped."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from twofold.hypervisor.monitor_control import InnerControl
from twofold.hypervisor.monitor_loop import Loop


class Line:
    """InnerControl, and the other end of its socket."""

    def __init__(self) -> None:
        ours, self.qemu = socket.socketpair()
        self.qemu.settimeout(5)
        self.failures: list[str] = []
        self.full = 0
        self._loop = Loop()
        self.control = InnerControl(ours, self._loop, lambda *_: None, self.failures.append)
        self.control.on_full_disk = self._count
        self.heard()
        self.says({"return": {}})

    def _count(self) -> None:
        self.full += 1

    def says(self, *messages: Any) -> None:
        self.qemu.sendall(b"".join(json.dumps(one).encode() + b"\r\n" for one in messages))
        self._loop.turn(1)

    def heard(self) -> list[str]:
        return [json.loads(line)["execute"] for line in self.qemu.recv(1 << 16).splitlines()]


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.control.close()
    made.qemu.close()


@pytest.mark.parametrize(("status", "full"), [("io-error", 1), ("paused", 0), ("running", 0)])
def test_a_stop_is_asked_for_its_reason(line: Line, status: str, full: int) -> None:
    line.says({"event": "STOP"})
    assert line.heard() == ["query-status"]
    line.says({"return": {"status": status, "running": False}})
    assert (line.full, line.failures) == (full, [])


def test_a_refusal_is_no_reason(line: Line) -> None:
    line.says({"event": "STOP"}, {"error": {"desc": "not now"}})
    assert (line.full, line.failures) == (0, [])


@pytest.mark.parametrize("answer", [{}, [], None, {"status": []}])
def test_nonsense_is_no_reason(line: Line, answer: Any) -> None:
    line.says({"event": "STOP"}, {"return": answer})
    assert line.full == 0


def test_a_qemu_that_stops_without_end_is_not_asked_without_end(line: Line) -> None:
    line.says(*[{"event": "STOP"}] * 500)
    assert len(line.heard()) == 64
    assert not line.failures
