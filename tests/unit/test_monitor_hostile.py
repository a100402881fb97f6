"""A monitor whose QEMU is hostile: a script in its place that abuses the agent's port.

Yardstick V8 and V10: an error with its reason, bounded memory, never a hang.
"""

import os
import resource
import select
import socket
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from twofold.guest import protocol
from twofold.hypervisor import monitor
from twofold.linux import sockets

PREAMBLE = """
import json, os, socket, struct, sys, time
agent = socket.socket(fileno=int(sys.argv[1]))
serial = socket.socket(fileno=int(sys.argv[2]))
from twofold.guest import protocol as p
def hello(**more):
    facts = {"version": 1, "window": 65536, "kernel": "6"} | more
    agent.sendall(p.SYNC + p.encode_json(p.HELLO, 0, facts))
def hear(kind):
    parser = hear.parser
    while True:
        for frame in hear.frames:
            hear.frames.remove(frame)
            if frame[0] == kind:
                return frame
            break
        else:
            data = agent.recv(65536)
            if not data:
                sys.exit(0)
            hear.frames += parser.feed(data)
hear.parser, hear.frames = p.Parser(), []
def ready():
    hello()
    hear(p.OPEN)
    agent.sendall(p.encode_json(p.CONFIGURED, 0, {"warnings": []}))
    agent.sendall(p.encode_json(p.OPENED, 4, {"pid": 2}))
def offend(data):
    try:
        agent.sendall(data)
    except OSError:
        pass
def end(code):
    agent.sendall(p.encode(p.EOF, 5) + p.encode(p.EOF, 6))
    agent.sendall(p.encode_json(p.EXIT, 4, {"exit_code": code}))
"""
MEMORY_GROWTH_LIMIT_KIB = 24 << 10


class Machine:
    """A monitor in a child, with ``script`` as its QEMU."""

    def __init__(self, script: str, folder: Path, *, timeout_s: float = 5.0, system: bool = False):
        path = folder / "qemu.py"
        path.write_text(f"{PREAMBLE}\n{textwrap.dedent(script)}\ntime.sleep(60)\n")
        self.console = folder / "console.log"
        vm: dict[str, Any] = {
            "argv": [sys.executable, str(path), "{fd:agent}", "{fd:serial}"],
            "guest": {"mode": "system" if system else "application", "process": {"argv": ["x"]}},
            "ready_timeout_s": timeout_s,
            "discard": True,
        }
        console = os.open(self.console, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        control = sockets.listen(f"{folder}/control.sock", mode=0o600)
        self.control_path = f"{folder}/control.sock"
        self.status, theirs = sockets.pair()
        self.stdout, out = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 125
            try:
                self.status.close()
                null = os.open("/dev/null", os.O_RDWR)
                for number, fd in enumerate((null, out, null)):
                    os.dup2(fd, number)
                code = monitor.run(
                    vm, stdio=(0, 1, 2), fds={"console": console}, status=theirs, control=control
                )
            finally:
                os._exit(code)
        for fd in (console, out):
            os.close(fd)
        theirs.close()
        control.close()
        self.pidfd = os.pidfd_open(self.pid)
        self.exit_code: int | None = None
        self.usage: resource.struct_rusage | None = None

    def word(self, timeout_s: float = 20.0) -> dict[str, Any]:
        self.status.settimeout(timeout_s)
        message, _ = sockets.receive(self.status)
        return message or {}

    def wait(self, timeout_s: float = 20.0) -> int:
        if self.exit_code is None:
            assert select.select([self.pidfd], [], [], timeout_s)[0], "the monitor hangs"
            _, status, self.usage = os.wait4(self.pid, 0)
            self.exit_code = os.waitstatus_to_exitcode(status)
        return self.exit_code

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(self.control_path)
        sock.settimeout(20)
        return sock

    def close(self) -> None:
        if self.exit_code is None:
            os.kill(self.pid, 15)
            try:
                self.wait(2)
            except AssertionError:
                os.kill(self.pid, 9)
                self.wait()
        for fd in (self.stdout, self.pidfd):
            os.close(fd)
        self.status.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Any]:
    made: list[Machine] = []

    def maker(script: str, **options: Any) -> Machine:
        made.append(Machine(script, tmp_path, **options))
        return made[-1]

    yield maker
    for machine in made:
        machine.close()


BAD_STARTS = {
    "no hello": "offend(os.urandom(4 << 20))",
    "claims": "offend(p.SYNC + struct.pack('!BII', p.DATA, 0, 0xFFFFFFFF))",
    "unknown type": "offend(p.SYNC + b'\\xc8' * 64)",
    "version 9": "hello(version=9)",
    "window 1073741824": "hello(window=1 << 30)",
    "window 'big'": "hello(window='big')",
    "type 1 on the link": "hello(); offend(p.encode_json(p.HELLO, 0, {}))",
    "bad JSON": "hello(); offend(p.encode(p.CONFIGURED, 0, b'[' * 60000))",
    "nonsense": "hello(); offend(p.encode_json(p.CONFIGURED, 0, {'warnings': 7}))",
    "before the hello": "offend(p.SYNC + p.encode(p.DATA, 5, b'x'))",
    "unasked data": "hello(); hear(p.OPEN); offend(p.encode(p.DATA, 5, b'x'))",
    "impossible exit": "hello(); hear(p.OPEN); offend(p.encode_json(p.EXIT, 4, {'exit_code': 1}))",
    "ready within 2 s": "pass",
    "ready within 2.0 s": "while True: offend(b'x'); time.sleep(0.01)",
    "the port is closed": "agent.close()",
    "no such machine": "sys.exit('qemu: no such machine')",
    "signal 11": "os.kill(os.getpid(), 11)",
}


@pytest.mark.parametrize(("reason", "script"), BAD_STARTS.items())
def test_a_bad_start_is_an_error_with_its_reason(make: Any, script: str, reason: str) -> None:
    machine = make(script, timeout_s=2.0)
    started = time.monotonic()
    word = machine.word()
    assert word["error"]["code"] == "guest_failed"
    assert reason.replace("2.0 s", "2 s") in word["error"]["message"]
    assert machine.wait() == 125
    assert time.monotonic() - started < 10


def test_the_end_of_the_console_is_in_the_error(make: Any) -> None:
    script = "serial.sendall(b'Kernel panic: no \\x1b[31mroot\\x1b[0m\\a\\r\\n')"
    word = make(script, timeout_s=1.0).word()
    assert word["error"]["details"]["console"] == ["Kernel panic: no root"]
    assert word["error"]["message"].endswith("Kernel panic: no root")


def test_what_a_guest_says_is_cleaned_before_people_see_it(make: Any) -> None:
    error = '{"code": "internal", "message": "\\u001b]0;owned\\u0007\\n", "details": [[1]]}'
    word = make(
        f"hello(); agent.sendall(p.encode(p.ERROR, 0, {error.encode()!r})); time.sleep(9)"
    ).word()
    assert word["error"]["message"].isprintable()


def test_the_payloads_exit_code_is_the_monitors(make: Any) -> None:
    machine = make("ready(); agent.sendall(p.encode(p.DATA, 5, b'out')); end(42)")
    assert machine.word()["ready"]
    assert os.read(machine.stdout, 10) == b"out"
    assert machine.wait() == 42


def test_more_than_the_window_is_refused_and_memory_stays_bounded(make: Any) -> None:
    machine = make(
        "ready()\nfor _ in range(999): offend(p.encode(p.DATA, 5, bytes(65536)))", timeout_s=9.0
    )
    assert machine.word()["ready"]
    sock = machine.connect()  # the port is dropped; commands are refused, the machine is not hurt
    end = time.monotonic() + 10
    while True:
        sockets.send(sock, {"op": "archive", "direction": "out", "path": "/"}, (1,))
        message, _ = sockets.receive(sock)
        assert message is not None
        if "unasked data" in message["error"]["message"]:
            break
        assert time.monotonic() < end
        sock = machine.connect()
    os.kill(machine.pid, 15)
    assert machine.wait() == 143


@pytest.mark.parametrize(
    "flood",
    [
        "p.encode_credit(4, 0xFFFFFFFF)",
        "p.encode(p.PONG, 0)",
        "p.encode(p.DATA, 4 * 77 + 1, bytes(1000))",
        "p.encode_json(p.EXIT, 4 * 99, {'exit_code': 0})",
        "p.encode(p.EOF, 5)",
    ],
)
def test_a_flood_of_frames_costs_no_memory(make: Any, flood: str) -> None:
    machine = make(
        f"ready(); block = {flood} * 500\nfor _ in range(400): agent.sendall(block)\nend(3)"
    )
    assert machine.word()["ready"]
    assert machine.wait() == 3
    assert machine.usage.ru_maxrss - _own_kib() < MEMORY_GROWTH_LIMIT_KIB


def test_a_flood_on_the_console_keeps_the_log_bounded(make: Any) -> None:
    machine = make("ready()\nfor _ in range(600): serial.sendall(b'x' * 65535 + b'\\n')\nend(0)")
    assert machine.word()["ready"]
    assert machine.wait() == 0
    assert machine.console.stat().st_size <= 2 << 20
    assert b"bytes of older output dropped" in machine.console.read_bytes()[:200]
    assert machine.usage.ru_maxrss - _own_kib() < MEMORY_GROWTH_LIMIT_KIB


def test_a_session_that_never_opens_ends_when_its_client_goes(make: Any) -> None:
    machine = make("ready()")
    assert machine.word()["ready"]
    for _ in range(200):  # more than there are places
        sock = machine.connect()
        read, write = os.pipe()
        sockets.send(sock, {"op": "archive", "direction": "in", "path": "/"}, (read,))
        os.close(read)
        os.close(write)
        sock.close()
    sock = machine.connect()
    sockets.send(sock, {"op": "exec"}, ())
    message, _ = sockets.receive(sock)
    assert message is not None
    assert message["error"]["code"] == "invalid_input"


def test_a_flood_of_resizes_costs_no_memory(make: Any) -> None:
    machine = make("ready(); hear(p.SIGNAL); end(5)")
    assert machine.word()["ready"]
    sock = machine.connect()
    for number in range(20000):
        sockets.send(sock, {"op": "resize", "rows": 1 + number % 90, "cols": 80})
    sockets.send(sock, {"op": "signal", "signal": "SIGUSR1"})
    assert machine.wait() == 5
    assert machine.usage.ru_maxrss - _own_kib() < MEMORY_GROWTH_LIMIT_KIB


def test_nonsense_from_a_client_closes_only_its_connection(make: Any) -> None:
    machine = make("ready(); hear(p.SIGNAL); end(6)")
    assert machine.word()["ready"]
    for nonsense in (b"{", b"[]", b"\xff" * 100, b"[" * 5000):
        sock = machine.connect()
        sock.send(nonsense)
        assert sock.recv(100) == b""
    for request in ({"op": "resize"}, {"op": "signal", "signal": "SIGNOPE"}, {"op": 7}, {}):
        sockets.send(machine.connect(), request)
    sockets.send(machine.connect(), {"op": "signal", "signal": "SIGRTMIN+3"})
    assert machine.wait() == 6


def test_a_system_guest_that_powers_off_ends_with_0(make: Any) -> None:
    machine = make(
        "ready(); serial.sendall(b'login: '); hear(p.SHUTDOWN); sys.exit(0)", system=True
    )
    assert machine.word()["ready"]
    assert os.read(machine.stdout, 100) == b"login: "
    os.kill(machine.pid, 15)
    assert machine.wait() == 0


def test_a_stalled_reader_does_not_outlive_a_fatal_signal(make: Any) -> None:
    machine = make(
        """
        ready()
        for _ in range(3):
            agent.sendall(p.encode(p.DATA, 5, bytes(65536)))
            hear(p.CREDIT) if _ == 0 else None
            if _ == 1: break
        end(0)
        """
    )
    assert machine.word()["ready"]
    with pytest.raises(AssertionError, match="hangs"):
        machine.wait(1.0)  # its output waits for a reader
    os.kill(machine.pid, 15)
    assert machine.wait() == 0


def test_a_qemu_that_fails_under_its_payload_is_125(make: Any) -> None:
    machine = make("ready(); time.sleep(0.2); sys.exit('qemu: disk I/O error')")
    assert machine.word()["ready"]
    assert machine.wait() == 125


def test_a_machine_that_dies_under_its_payload_is_137(make: Any) -> None:
    machine = make("ready(); time.sleep(0.2); sys.exit(0)")
    assert machine.word()["ready"]
    assert machine.wait() == 137


def _own_kib() -> int:
    """The forked monitor starts with all of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4


def test_the_protocol_version_is_stated() -> None:
    assert protocol.VERSION == 1
