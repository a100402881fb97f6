"""Attach and detach: streams, keys, signals and exit codes, against real processes."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_twofold import FakeTwofold, instance, reply
from test_cli_session import LOOP, Terminal

from twofold.cli import keys, pump


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeTwofold]:
    server = FakeTwofold(tmp_path)
    server.replies["GET", "/v1/instances/web"] = lambda: iter([reply(instance())])
    server.running = ["sh", "-c", "echo out; echo err >&2; cat; exit 9"]
    yield server
    server.close()


def with_terminal(fake: FakeTwofold) -> None:
    answer = instance(spec={"tty": True})
    fake.replies["GET", "/v1/instances/web"] = lambda: iter([reply(answer)])


def test_streams_and_the_exit_code_are_the_payloads(fake: FakeTwofold) -> None:
    done = fake.run("attach", "web", input=b"typed")
    assert (done.returncode, done.stdout) == (9, b"out\ntyped")
    assert done.stderr == b"err\n"
    assert fake.run("attach", "--no-stdin", "web", input=b"typed").stdout == b"out\n"


def test_signals_reach_the_payload_or_leave_it(fake: FakeTwofold) -> None:
    for flags, code in (([], 143), (["--no-sig-proxy"], 0)):
        fake.running = ["sh", "-c", f"echo up; {LOOP}"]
        command = subprocess.Popen(
            fake.command("attach", *flags, "web"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert command.stdout is not None
        assert command.stdout.readline() == b"up\n"
        command.send_signal(signal.SIGTERM)
        _, said = command.communicate(timeout=10)
        assert command.returncode == code
        assert (b"detached" in said) == bool(flags)
    assert fake.signals == ["SIGTERM"]


def test_a_terminal_is_left_by_the_keys_of_ones_choice(fake: FakeTwofold) -> None:
    with_terminal(fake)
    fake.running = ["sh", "-c", "stty -echo raw; echo up; cat -v"]
    screen = Terminal(fake, "attach", "--detach-keys", "ctrl-x,d", "web")
    screen.expect(b"up")
    screen.type(b"\x10\x11")  # the usual ones are nothing special now
    screen.expect(b"^P^Q")
    screen.type(b"a\x18b")
    screen.expect(b"a^Xb")
    screen.type(b"c\x18")
    screen.type(b"d")
    assert screen.wait() == 0
    assert b"detached" in screen.seen
    assert fake.children[0].poll() is None
    screen.close()


def test_joining_makes_the_program_draw_anew(fake: FakeTwofold) -> None:
    """A size that changes and changes back: what is on the screen was drawn for others."""
    with_terminal(fake)
    fake.running = ["sh", "-c", "stty -echo raw; echo up; cat -v"]
    screen = Terminal(fake, "attach", "web")
    screen.expect(b"up")
    screen.type(b"x")
    screen.expect(b"x")
    deadline = time.monotonic() + 10
    while len(fake.resizes) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (first_rows, _), (rows, _) = fake.resizes[:2]
    assert first_rows == rows + 1
    screen.type(b"\x10\x11")
    assert screen.wait() == 0
    screen.close()


def test_an_unknown_end_is_said(fake: FakeTwofold, monkeypatch: pytest.MonkeyPatch) -> None:
    def reap(door: object, child: subprocess.Popen[bytes]) -> None:
        child.wait()
        door.send(b'{"event": "lost", "bytes": 7}')  # type: ignore[attr-defined]
        door.send(b'{"event": "exit", "exit_code": null, "error": "it was orphaned"}')  # type: ignore[attr-defined]

    monkeypatch.setattr(fake, "_reap", reap)
    done = fake.run("attach", "web")
    assert done.returncode == 125
    assert b"7 bytes of output were skipped" in done.stderr
    assert b"it was orphaned" in done.stderr


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("CTRL-X,d", b"\x18d"),
        ("ctrl-@,ctrl-[,ctrl-_", b"\x00\x1b\x1f"),
        ("", b""),
    ],
)
def test_keys(text: str, found: bytes) -> None:
    assert keys.detach_keys(text) == found


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-1", "ab", "ctrl-p,,q", "é"])
def test_wrong_keys(fake: FakeTwofold, text: str) -> None:
    done = fake.run("attach", "--detach-keys", text, "web")
    assert done.returncode == 2
    assert b"is neither a character nor ctrl-LETTER" in done.stderr


def test_keys_across_reads_are_found_and_what_stands_before_is_passed_on() -> None:
    read, write = os.pipe()
    out_read, out_write = os.pipe()
    one = pump.Pump(read, out_write, sink_is_ours=False, detach_keys=b"\x01\x01\x02")
    for piece in (b"ab\x01", b"\x01", b"\x01", b"x\x01\x01"):
        os.write(write, piece)
        one.read()
    assert os.read(out_read, 100) == b"ab\x01\x01\x01x"
    os.write(write, b"\x02rest")
    with pytest.raises(pump.DetachKeysError):
        one.read()
    for fd in (read, write, out_read, out_write):
        os.close(fd)


def test_exec_detached_asks_for_nothing_else(fake: FakeTwofold) -> None:
    fake.replies["POST", "/v1/instances/web/exec"] = lambda: iter([reply({"session": "s7"})])
    done = fake.run("exec", "-d", "-u", "www-data", "web", "job", "-d")
    assert (done.returncode, done.stdout) == (0, b"")
    assert fake.requests[-1][2] == {
        "command": ["job", "-d"],
        "env": [],
        "tty": False,
        "user": "www-data",
        "detach": True,
    }
    assert b"s7" in fake.run("--json", "exec", "-d", "web", "job").stdout
    assert fake.run("exec", "-d", "-i", "web", "job").returncode == 2


def test_detach_keys_of_run(fake: FakeTwofold) -> None:
    screen = Terminal(fake, "run", "-it", "--detach-keys", "ctrl-a", "debian", "sh", "-c", "cat")
    screen.type(b"\x01")
    assert screen.wait() == 0
    screen.close()
