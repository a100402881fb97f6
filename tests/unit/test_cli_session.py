"""Foreground commands against real processes: descriptors, terminals, signals, exit codes."""

import hashlib
import os
import pty
import select
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_twofold import FakeTwofold, instance, ndjson, reply

from twofold.cli import session
from twofold.errors import InvalidInput

LOOP = "while :; do sleep .01; done"


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeTwofold]:
    server = FakeTwofold(tmp_path)
    yield server
    server.close()


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, fake: FakeTwofold, *words: str, size: tuple[int, int] = (30, 100)) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            command = fake.command(*words)
            os.execv(command[0], command)
        termios.tcsetwinsize(self.master, size)
        self.seen = b""
        self.code: int | None = None

    def expect(self, text: bytes, *, timeout_s: float = 10) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"never saw {text!r} in {self.seen!r}"
            if select.select([self.master], [], [], left)[0]:
                try:
                    data = os.read(self.master, 65536)
                except OSError:
                    data = b""
                assert data, f"ended without {text!r}: {self.seen!r}"
                self.seen += data

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def wait(self) -> int:
        try:
            while data := os.read(self.master, 65536):
                self.seen += data
        except OSError:
            pass
        _, status = os.waitpid(self.pid, 0)
        self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def mode(self) -> list[object]:
        return termios.tcgetattr(self.master)[:4]

    def close(self) -> None:
        os.close(self.master)


def test_exit_code_and_streams_pass_through(fake: FakeTwofold) -> None:
    done = fake.run("run", "--rm", "debian", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    assert ("GET", "/v1/instances/3f2a9c0d1e4b5a67/wait?condition=removed", None) in fake.requests


def test_proxied_streams(fake: FakeTwofold) -> None:
    done = fake.run("run", "debian", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


@pytest.mark.parametrize("removal", [["--rm"], []])
def test_large_binary_stdin_and_stdout(fake: FakeTwofold, removal: list[str]) -> None:
    data = os.urandom(1 << 20) * 20
    done = fake.run("run", "-i", *removal, "debian", "cat", input=data, timeout=60)
    assert done.returncode == 0
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("removal", [["--rm"], []])
def test_without_i_the_payload_reads_nothing(fake: FakeTwofold, removal: list[str]) -> None:
    done = fake.run("run", *removal, "debian", "wc", "-c", input=b"secret")
    assert done.stdout.strip() == b"0"


@pytest.mark.parametrize("removal", [["--rm"], []])
def test_a_payload_that_does_not_read_its_input(fake: FakeTwofold, removal: list[str]) -> None:
    done = fake.run("run", "-i", *removal, "debian", "true", input=bytes(10 << 20))
    assert done.returncode == 0


def test_signals_are_forwarded(fake: FakeTwofold) -> None:
    script = "trap 'echo usr1' USR1; trap 'echo term; exit 9' TERM; echo ready; " + LOOP
    child = subprocess.Popen(
        fake.command("run", "--rm", "debian", "sh", "-c", script), stdout=subprocess.PIPE
    )
    assert child.stdout
    assert child.stdout.readline() == b"ready\n"
    time.sleep(0.1)  # "started" has reached the command: until then a signal ends the start
    child.send_signal(signal.SIGUSR1)
    assert child.stdout.readline() == b"usr1\n"
    child.send_signal(signal.SIGTERM)
    assert child.stdout.read() == b"term\n"
    assert child.wait(10) == 9


def test_third_interrupt_kills(fake: FakeTwofold) -> None:
    script = "trap '' INT; echo ready; " + LOOP
    child = subprocess.Popen(
        fake.command("run", "--rm", "debian", "sh", "-c", script),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout
    assert child.stdout.readline() == b"ready\n"
    time.sleep(0.1)
    for count in range(1, 4):
        child.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 5
        while len(fake.signals) < count and time.monotonic() < deadline:
            time.sleep(0.01)
    assert child.wait(10) == 137
    assert fake.signals == ["SIGINT", "SIGINT", "SIGKILL"]


def test_output_after_a_closed_stdout(fake: FakeTwofold) -> None:
    """``twofold run … yes | head -1`` ends, and the payload dies of SIGPIPE."""
    script = " ".join(map(_quoted, fake.command("run", "debian", "yes"))) + " | head -n 1"
    done = subprocess.run(
        ["bash", "-c", script + '; exit "${PIPESTATUS[0]}"'], capture_output=True, timeout=20
    )
    assert (done.returncode, done.stdout, done.stderr) == (141, b"y\n", b"")


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def test_list_into_a_closed_pipe_is_quiet(fake: FakeTwofold) -> None:
    many = [instance(f"web{number}") for number in range(3000)]
    fake.replies["GET", "/v1/instances?all=true"] = lambda: iter([reply(many)])
    script = " ".join(map(_quoted, fake.command("list"))) + " | head -n 1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, timeout=20)
    assert done.stderr == b""


def test_no_terminal_of_the_host_is_handed_inside(fake: FakeTwofold) -> None:
    """Without -t the payload sees pipes, though we sit on a terminal; lines keep their order."""
    script = "for n in 0 1 2; do readlink /proc/self/fd/$n >&$((n > 1 ? 2 : 1)); done; test -t 1"
    screen = Terminal(fake, "run", "--rm", "-i", "debian", "bash", "-c", script)
    assert screen.wait() == 1
    screen.close()
    lines = screen.seen.split(b"\r\n")
    assert [line.split(b":")[0] for line in lines[:3]] == [b"pipe", b"pipe", b"pipe"]


def test_typed_input_without_a_terminal_inside(fake: FakeTwofold) -> None:
    screen = Terminal(fake, "run", "--rm", "-i", "debian", "cat")
    screen.type(b"hello\n")
    screen.expect(b"hello\r\nhello\r\n")  # the terminal's echo, then cat
    screen.type(b"\x04")
    assert screen.wait() == 0
    screen.close()


@pytest.mark.parametrize("words", [["run", "--rm", "-it", "debian"], ["exec", "-it", "web"]])
def test_terminal(fake: FakeTwofold, words: list[str]) -> None:
    screen = Terminal(
        fake,
        *words,
        "sh",
        "-c",
        "trap 'stty size' WINCH; stty size; while ! read -r x; do :; done; echo got $x; " + LOOP,
    )
    before = screen.mode()
    screen.expect(b"30 100")
    termios.tcsetwinsize(screen.master, (40, 120))
    screen.expect(b"40 120")
    screen.type(b"abc\r")
    screen.expect(b"got abc")
    assert screen.mode() != before  # raw: Ctrl-C is a byte, and the terminal inside makes it INT
    screen.type(b"\x03")
    assert screen.wait() == 130
    assert screen.mode() == before
    screen.close()


def test_the_terminal_is_restored_when_the_keeper_goes(fake: FakeTwofold) -> None:
    screen = Terminal(fake, "run", "--rm", "-it", "debian", "sh", "-c", "echo up; sleep 60")
    before = screen.mode()
    screen.expect(b"up")
    fake.close()
    assert screen.wait() == 125
    assert b"twofold: error: the keeper closed the session" in screen.seen
    assert screen.mode() == before
    screen.close()


def test_detach_keys(fake: FakeTwofold) -> None:
    screen = Terminal(fake, "run", "-it", "debian", "sh", "-c", "echo up; sleep 60")
    screen.expect(b"up")
    screen.type(b"\x10")
    screen.type(b"\x11")
    assert screen.wait() == 0
    assert b"detached" in screen.seen
    assert fake.children[0].poll() is None
    screen.close()


def test_it_without_a_terminal_is_a_usage_error(fake: FakeTwofold) -> None:
    done = fake.run("run", "-it", "debian", "sh", input=b"")
    assert done.returncode == 2
    assert done.stderr.startswith(b"twofold: error: -it: the standard input is not a terminal\n")


def test_a_directory_is_not_handed_inside() -> None:
    folder = os.open("/", os.O_RDONLY)
    with pytest.raises(InvalidInput, match="is a directory of this host"):
        session._usable(folder)
    os.close(folder)


def test_closed_descriptors_are_no_surprise(fake: FakeTwofold) -> None:
    command = " ".join(
        map(_quoted, fake.command("run", "--rm", "-i", "debian", "sh", "-c", "exit 5"))
    )
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(["bash", "-c", f"{command} {closed}"], timeout=20, check=False)
        assert done.returncode == 5, closed


def test_the_error_of_a_start_is_printed_once(fake: FakeTwofold) -> None:
    error = {"code": "command_not_found", "message": "'nope' is not in the image", "hint": "PATH"}
    fake.replies["POST", "/v1/instances"] = lambda: ndjson({"type": "error", "error": error})
    done = fake.run("run", "--rm", "debian", "nope")
    assert done.returncode == 127
    assert done.stderr == b"twofold: error: 'nope' is not in the image\nhint: PATH\n"


def test_a_signal_between_the_reply_and_the_copying_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passed_on: list[str] = []
    door = SimpleNamespace(signal=passed_on.append, close=lambda: None)
    one = session.Session(
        SimpleNamespace(), tty=False, interactive=False, direct=True, operates=False
    )
    monkeypatch.setattr(one, "_door", door)
    monkeypatch.setattr(one, "_copy", lambda door: 0)
    with one:
        os.kill(os.getpid(), signal.SIGTERM)
        assert one.finish() == 0
    assert passed_on == ["SIGTERM"]


def test_interrupted_before_the_start(fake: FakeTwofold) -> None:
    def never() -> Iterator[bytes]:
        print("asked", flush=True)
        time.sleep(20)
        yield b""

    asked = []
    fake.replies["POST", "/v1/instances"] = lambda: (asked.append(1), never())[1]
    child = subprocess.Popen(fake.command("run", "--rm", "debian", "true"), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 5
    while not asked and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    assert child.wait(5) == 130
    assert child.stderr
    assert b"interrupted by SIGINT" in child.stderr.read()


def test_an_interrupt_cancels_and_waits_for_the_unwinding(fake: FakeTwofold) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    def boot() -> Iterator[bytes]:
        error = {"code": "internal", "message": "cancelled"}
        pieces = ndjson(
            {"type": "operation", "operation": {"id": "op7", "steps": []}},
            {"type": "error", "error": error},
        )
        yield from (next(pieces) for _ in range(3))
        begun.set()
        assert cancelled.wait(10)
        time.sleep(0.2)  # unwinding
        yield from pieces

    def cancel() -> Iterator[bytes]:
        cancelled.set()
        yield reply({})

    fake.replies["POST", "/v1/instances"] = boot
    fake.replies["DELETE", "/v1/operations/op7"] = cancel
    child = subprocess.Popen(fake.command("run", "debian", "true"), stderr=subprocess.PIPE)
    assert begun.wait(10)
    time.sleep(0.3)  # the command has read the line
    begin = time.monotonic()
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == 143
    assert time.monotonic() - begin > 0.2
    assert child.stderr
    assert child.stderr.read().startswith(b"twofold: error: interrupted by SIGTERM")


def test_detached_run_prints_the_name(fake: FakeTwofold) -> None:
    done = fake.run("run", "-d", "debian", "sleep", "9")
    assert (done.returncode, done.stdout) == (0, b"web\n")
    assert fake.requests[-1][2]["ticket"] is None


def test_fast_exit_is_not_lost(fake: FakeTwofold) -> None:
    for _ in range(10):
        done = fake.run("run", "--rm", "debian", "echo", "x")
        assert (done.returncode, done.stdout) == (0, b"x\n")
