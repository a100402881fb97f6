"""The holder alone, with a keeper of a few lines: what it keeps, passes on, and when it ends."""

import os
import select
import signal
import socket
from collections.abc import Callable

import pytest

from twofold.linux import signals
from twofold.runtime import handoff, wire
from twofold.runtime.deposit import Deposit, Taken
from twofold.runtime.holder import Holder, KeeperEndedError

Keeper = Callable[[Holder, socket.socket, int], None]


def hold(keeper: Keeper, *, generations: int = 2) -> str:
    """Run a holder in a process of its own; the keepers report on a pipe, one line each."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            holder = Holder({}, check=lambda python: [python], execute=lambda *_: None)
            os.write(write, f"holder {os.getpid()}\n".encode())
            line = holder.hold()
            keeper(holder, line, write)
            code = 0
        except KeeperEndedError:
            code = 42
        finally:
            os._exit(code)
    os.close(write)
    said = b""
    while piece := os.read(read, 4096):
        said += piece
    os.close(read)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
    return said.decode()


def test_deposits_reach_the_next_keeper_until_they_are_dropped() -> None:
    def keeper(holder: Holder, line: socket.socket, report: int) -> None:
        if not holder.deposits:
            read, write = os.pipe()
            os.write(write, b"in the pipe")
            for name in ("kept", "dropped"):
                wire.send(line, {"put": name, "pid": 0, "state": '{"n":1}'}, (read,))
            wire.send(line, {"put": "kept", "pid": 0, "state": '{"n":2}'}, (read,))
            wire.send(line, {"drop": "dropped"})
            os.kill(os.getpid(), signal.SIGKILL)
        taken = Taken(holder.deposits["kept"])
        text = os.read(taken.fd(0), 100).decode()
        os.write(report, f"{sorted(holder.deposits)} {taken.state} {text}\n".encode())
        wire.send(line, {"end": True})

    assert hold(keeper).splitlines()[1] == "['kept'] {'n': 2} in the pipe"


def test_the_status_of_an_orphan_reaches_the_next_keeper() -> None:
    def keeper(holder: Holder, line: socket.socket, report: int) -> None:
        if not holder.deposits:
            for code in (7, 9):
                child = os.fork()
                if child == 0:
                    line.close()
                    if code == 9:
                        signal.sigtimedwait([signal.SIGUSR1], 0.3)
                    os._exit(code)
                wire.send(line, {"put": f"of {code}", "pid": child, "state": "{}"})
            os.kill(os.getpid(), signal.SIGKILL)
        codes = {one.pid: one.status for one in holder.deposits.values()}
        while None in codes.values():
            assert select.select([line.fileno()], [], [], 10)[0]
            message, _ = wire.receive(line)
            assert message is not None
            codes[message["reaped"]] = message["status"]
        found = [os.waitstatus_to_exitcode(status or 0) for status in codes.values()]
        os.write(report, f"{found}\n".encode())
        wire.send(line, {"end": True})

    assert hold(keeper).splitlines()[1] == "[7, 9]"


def test_code_that_cannot_be_loaded_is_refused() -> None:
    def keeper(holder: Holder, line: socket.socket, report: int) -> None:
        for python in ("/bin/false", "/no/such/python"):
            wire.send(line, {"upgrade": python, "python_path": None})
            message, _ = wire.receive(line)
            assert message is not None
            os.write(report, f"{message['upgrade']}\n".encode())
        wire.send(line, {"end": True})

    _, first, second = hold(keeper).splitlines()
    assert "exit code 1" in first
    assert "No such file" in second


def test_a_handoff_is_what_it_was(tmp_path: object) -> None:
    read, write = os.pipe()
    listener = socket.socket(socket.AF_UNIX)
    before = {"a": Deposit("a", '{"é":"x"}', [read], 5, None), "b": Deposit("b", "{}", [], 0, 9)}
    memory = handoff.pack(before, [listener.fileno()])
    assert os.get_inheritable(read)
    after, (again,) = handoff.unpack(memory)
    assert not os.get_inheritable(read)
    assert again.fileno() == listener.fileno()
    again.detach()
    listener.close()
    for name, one in before.items():
        other = after[name]
        assert (other.state, other.fds, other.pid, other.status) == (
            one.state,
            one.fds,
            one.pid,
            one.status,
        )
    os.close(read)
    os.close(write)


def test_a_handoff_of_another_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handoff, "FORMAT", 99)
    memory = handoff.pack({}, [])
    monkeypatch.setattr(handoff, "FORMAT", 1)
    with pytest.raises(ValueError, match="format 99"):
        handoff.unpack(memory)


@pytest.mark.parametrize(
    ("word", "number"),
    [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGRTMIN+3", 37), ("64", 64), ("CHLD", 17)],
)
def test_signals_by_name(word: str, number: int) -> None:
    assert signals.number_of(word) == number
    assert signals.number_of(signals.name_of(number)) == number


@pytest.mark.parametrize(
    "word", ["", "SIG", "0", "65", "-1", "\uff11", "SIGNOPE", "RTMIN+99", "_DFL"]
)
def test_what_is_no_signal(word: str) -> None:
    assert signals.number_of(word) == 0
