"""The command in the foreground against the real keeper: stdio, terminals, signals, removal."""

import hashlib
import os
import select
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Runner = Callable[..., "subprocess.CompletedProcess[bytes]"]
LOOP = "while :; do sleep .05; done"
# Of no interest here, and a start is faster without one.
APART = ("--network", "none")


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, command: list[str], root: str) -> None:
        self.pid, self.master = os.forkpty()
        if self.pid == 0:
            os.execve(command[0], command, {**os.environ, "TWOFOLD_ROOT": root, "TERM": "xterm"})
        termios.tcsetwinsize(self.master, (30, 100))
        self.seen = b""

    def expect(self, text: bytes, *, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.seen:
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"never saw {text!r} in {self.seen!r}"
            if select.select([self.master], [], [], left_s)[0]:
                data = self._read()
                assert data, f"ended without {text!r}: {self.seen!r}"

    def _read(self) -> bytes:
        try:
            data = os.read(self.master, 65536)
        except OSError:
            data = b""
        self.seen += data
        return data

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def mode(self) -> list[object]:
        return termios.tcgetattr(self.master)[:4]

    def wait(self) -> int:
        while self._read():
            pass
        _, status = os.waitpid(self.pid, 0)
        os.close(self.master)
        return os.waitstatus_to_exitcode(status)


@pytest.fixture
def terminal(twofold_root: str, clone: Path, twofold: Runner) -> Callable[..., Terminal]:
    twofold("list", check=True)
    return lambda *words: Terminal([str(clone / ".venv/bin/twofold"), *words], twofold_root)


@pytest.fixture
def start(twofold_root: str, clone: Path) -> Callable[..., "subprocess.Popen[bytes]"]:
    """The command in the background, with pipes."""
    environment = {**os.environ, "TWOFOLD_ROOT": twofold_root}

    def run(*words: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [str(clone / ".venv/bin/twofold"), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )

    return run


@pytest.fixture
def running(twofold: Runner, busybox_image: str) -> Iterator[str]:
    """A container that sleeps."""
    name = (
        twofold("run", *APART, "-d", busybox_image, "sleep", "1000", check=True)
        .stdout.decode()
        .strip()
    )
    yield name
    twofold("rm", "-f", name)


@pytest.mark.shared
@pytest.mark.parametrize("removal", [["--rm"], []])
def test_streams_and_exit_code(twofold: Runner, busybox_image: str, removal: list[str]) -> None:
    script = "cat; echo err >&2; exit 7"
    done = twofold("run", "-i", *removal, *APART, busybox_image, "sh", "-c", script, stdin=b"a\0b")
    assert (done.returncode, done.stdout) == (7, b"a\0b")
    # Once in a daemon's life, what this host lacks is said on stderr too, before or after.
    assert b"err\n" in done.stderr


@pytest.mark.shared
@pytest.mark.parametrize(
    ("words", "code"), [(["nope"], 127), (["/etc/passwd"], 126), (["sh", "-c", "kill -9 $$"], 137)]
)
def test_exit_codes_of_what_does_not_run(
    twofold: Runner, busybox_image: str, running: str, words: list[str], code: int
) -> None:
    assert twofold("run", "--rm", *APART, busybox_image, *words).returncode == code
    assert twofold("exec", running, *words).returncode == code


@pytest.mark.shared
@pytest.mark.parametrize("verb", ["run --network none --rm -i", "run --network none -i", "exec -i"])
def test_large_binary_streams(twofold: Runner, busybox_image: str, running: str, verb: str) -> None:
    data = os.urandom(1 << 20) * 40
    where = running if verb.startswith("exec") else busybox_image
    done = twofold(*verb.split(), where, "cat", stdin=data)
    assert done.returncode == 0
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


@pytest.mark.shared
@pytest.mark.parametrize("removal", [["--rm"], []])
def test_signals_reach_the_payload(
    start: Callable[..., "subprocess.Popen[bytes]"], busybox_image: str, removal: list[str]
) -> None:
    script = "trap 'echo hup' HUP; trap 'echo term; exit 9' TERM; echo ready; " + LOOP
    child = start("run", *removal, *APART, busybox_image, "sh", "-c", script)
    assert child.stdout
    assert child.stdout.readline() == b"ready\n"
    time.sleep(0.3)  # the command must have heard that it runs; before, a signal ends the start
    child.send_signal(signal.SIGHUP)
    assert child.stdout.readline() == b"hup\n"
    child.send_signal(signal.SIGTERM)
    assert child.stdout.read() == b"term\n"
    assert child.wait(10) == 9


@pytest.mark.shared
def test_nothing_is_left_when_run_rm_returns(
    twofold: Runner, busybox_image: str, no_leaks: Callable[[], None]
) -> None:
    before = twofold("list", "-q").stdout
    for _ in range(3):
        twofold("run", "--rm", *APART, busybox_image, "true", check=True)
        assert twofold("list", "-q").stdout == before
    no_leaks()


@pytest.mark.shared
@pytest.mark.parametrize(
    "verb", ["run --network none --rm -it", "run --network none -it", "exec -it"]
)
def test_a_terminal(
    terminal: Callable[..., Terminal], busybox_image: str, running: str, verb: str
) -> None:
    where = running if verb.startswith("exec") else busybox_image
    # read first: busybox's does not survive a signal that is trapped.
    script = (
        "test -t 0 && test -t 1 && test -t 2 && tty; stty size; read -r x; echo got $x $TERM; "
        "trap 'stty size' WINCH; echo trapped; " + LOOP
    )
    screen = terminal(*verb.split(), where, "sh", "-c", script)
    before = screen.mode()
    screen.expect(b"/dev/")
    screen.expect(b"30 100")
    screen.type(b"abc\r")
    screen.expect(b"got abc xterm\r\ntrapped")
    assert screen.mode() != before
    termios.tcsetwinsize(screen.master, (40, 120))
    screen.expect(b"40 120")
    screen.type(b"\x03")
    assert screen.wait() == 130
    assert b"twofold:" not in screen.seen


@pytest.mark.shared
def test_the_mode_of_the_terminal_comes_back(
    terminal: Callable[..., Terminal], busybox_image: str
) -> None:
    screen = terminal("run", *APART, "--rm", "-it", busybox_image, "sh", "-c", "read x")
    before = screen.mode()
    deadline = time.monotonic() + 30
    while screen.mode() == before and time.monotonic() < deadline:
        time.sleep(0.02)
    screen.type(b"\r")
    deadline = time.monotonic() + 30
    while screen.mode() != before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert screen.mode() == before
    assert screen.wait() == 0


@pytest.mark.shared
def test_no_terminal_of_the_host_inside(
    terminal: Callable[..., Terminal], busybox_image: str, running: str
) -> None:
    script = "readlink /proc/self/fd/0 /proc/self/fd/1; test -t 0 || test -t 1 || test -t 2"
    for words in (["run", *APART, "--rm", "-i", busybox_image], ["exec", "-i", running]):
        screen = terminal(*words, "sh", "-c", script)
        assert screen.wait() == 1
        assert b"/dev/pts" not in screen.seen


@pytest.mark.shared
def test_detach_and_attach_again(
    terminal: Callable[..., Terminal], twofold: Runner, busybox_image: str
) -> None:
    screen = terminal("run", *APART, "-it", "--name", "detached", busybox_image, "sh")
    screen.expect(b"# ")
    screen.type(b"\x10\x11")
    assert screen.wait() == 0
    assert b"detached; the instance runs on" in screen.seen
    assert b'"running"' in twofold("show", "detached", "--json").stdout
    twofold("rm", "-f", "detached", check=True)


@pytest.mark.shared
def test_shell(terminal: Callable[..., Terminal], twofold: Runner, running: str) -> None:
    done = twofold("shell", running, stdin=b"echo $0; exit 4\n")
    assert (done.returncode, done.stdout.strip()) == (4, b"sh")
    screen = terminal("shell", running)
    screen.expect(b"# ")
    screen.type(b"exit 5\r")
    assert screen.wait() == 5


@pytest.mark.shared
def test_a_closed_reader(twofold_root: str, clone: Path, busybox_image: str) -> None:
    for removal in ("--rm", ""):
        run = f"{clone}/.venv/bin/twofold run --network none {removal} {busybox_image}"
        done = subprocess.run(
            ["bash", "-c", f"{run} yes | head -n 1"],
            env={**os.environ, "TWOFOLD_ROOT": twofold_root},
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.stdout == b"y\n"
        assert b"Traceback" not in done.stderr


@pytest.mark.shared
def test_the_daemon_dies_and_the_session_goes_on(
    start: Callable[..., "subprocess.Popen[bytes]"], twofold: Runner, busybox_image: str
) -> None:
    script = "echo ready; sleep 2; echo done; exit 6"
    child = start("run", "--rm", "--name", "orphan", *APART, busybox_image, "sh", "-c", script)
    assert child.stdout
    assert child.stdout.readline() == b"ready\n"
    version = twofold("version", "--json", check=True).stdout
    os.kill(int(version.split(b'"pid":')[1].split(b",")[0]), signal.SIGKILL)
    assert child.stdout.read() == b"done\n"
    assert child.stderr
    said = child.stderr.read()
    assert child.wait(30) == 6, said
    assert b"error" not in said
    assert b"orphan" not in twofold("list", "-q", check=True).stdout


@pytest.mark.shared
def test_an_interrupted_boot_is_undone_when_the_command_returns(
    start: Callable[..., "subprocess.Popen[bytes]"],
    twofold: Runner,
    busybox_image: str,
    no_leaks: Callable[[], None],
) -> None:
    run = ("run", "--rm", "--vm", "--cold", "--name", "cut", *APART, busybox_image, "true")
    child = start(*run)
    assert child.stderr
    line = child.stderr.readline()
    while not line.startswith(b"Booting cut"):
        assert line, "it was never announced"
        line = child.stderr.readline()
    child.send_signal(signal.SIGINT)
    said = child.stderr.read()
    assert child.wait(30) == 130
    assert said.count(b"twofold: error:") == 1
    assert b"cut" not in twofold("list", "-q", check=True).stdout.split()
    no_leaks()
