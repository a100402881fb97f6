"""Words that become more than they are: into the user's terminal, into a file of lines.

Each probe has a control (see test_hostile_container.py).
"""

import fcntl
import http.client
import json
import os
import pty
import select
import socket
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from hostile_lab import APART, Runner

from twofold.model.paths import Paths

pytest_plugins = ["hostile_lab"]


# O21: the user's terminal


def on_a_terminal(command: list[str | Path], root: str) -> bytes:
    """Run ``command`` in the foreground of a terminal; what stands to be read there afterwards."""
    parent, child = pty.openpty()
    settings = termios.tcgetattr(child)
    settings[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(child, termios.TCSANOW, settings)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        fcntl.ioctl(child, termios.TIOCSCTTY, 0)
        for fd in range(3):
            os.dup2(child, fd)
        os.execve(command[0], command, {**os.environ, "TWOFOLD_ROOT": root})
    deadline = time.monotonic() + 60
    said = b""
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        assert time.monotonic() < deadline, said
        if select.select([parent], [], [], 0.1)[0]:
            said += os.read(parent, 65536)
    while select.select([parent], [], [], 0)[0]:
        said += os.read(parent, 65536)
    os.set_blocking(child, False)
    try:
        typed = os.read(child, 65536)
    except BlockingIOError:
        typed = b""
    os.close(parent)
    os.close(child)
    assert b"pushed" in said, said
    return typed


@pytest.mark.parametrize("options", [[], ["-i"], ["-t"], ["-it"]], ids=lambda each: "".join(each))
@pytest.mark.parametrize("verb", ["run", "exec"])
def test_nothing_is_typed_into_the_users_terminal(
    verb: str,
    options: list[str],
    twofold_root: str,
    clone: Path,
    prison: str,
    debian_image: str,
    probes: Path,
) -> None:
    """CVE-2017-5226: TIOCSTI and TIOCLINUX on a terminal that was inherited."""
    twofold = clone / ".venv/bin/twofold"
    words: list[str | Path] = [twofold, "exec", *options, prison]
    if verb == "run":
        words = [twofold, "run", "--rm", *APART, *options, "-v", f"{probes}:/probes", debian_image]
    typed = on_a_terminal(
        [*words, "perl", "/probes/hostile.pl", "terminal", "gotcha"], twofold_root
    )
    assert b"gotcha" not in typed


def test_the_terminal_probe_would_have_typed(twofold_root: str, probes: Path) -> None:
    command: list[str | Path] = ["/usr/bin/perl", probes / "hostile.pl", "terminal", "gotcha"]
    assert b"gotcha" in on_a_terminal(command, twofold_root)


# O19: lines that are two


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def create(root: str, image: str, **changes: Any) -> tuple[int, dict[str, Any]]:
    connection = _UnixConnection(Paths(root).api_socket)
    spec = {"image": image, "command": ["env", "-0"], "name": "hostile-lines", **changes}
    body = json.dumps({"spec": spec, "start": False, "ticket": None})
    connection.request("POST", "/v1/instances", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    data = json.loads(answer.read())
    connection.close()
    return answer.status, data


LINES: list[dict[str, Any]] = [
    {"env": ["A=1\0B=2"]},
    {"env": ["A\nB=2"]},
    {"env": ["\0=2"]},
    {"name": "a\nb"},
    {"name": "a\0b"},
    {"hostname": "a\nb"},
    {"hostname": "a\0b"},
    {"hostname": "a b"},
    {"command": ["a\0b"]},
    {"workdir": "/a\0b"},
    {"user": "root\n"},
    {"user": "0\0"},
    {"entrypoint": ["x\0y"]},
    {"volumes": [{"source": "/tmp/a\0b", "target": "/a"}]},
    {"volumes": [{"source": "/tmp", "target": "/a\0b"}]},
    {"restart": "always\n"},
]


@pytest.mark.parametrize("changes", LINES, ids=lambda each: json.dumps(each)[:40])
def test_a_line_that_is_two_is_refused(
    twofold: Runner, twofold_root: str, debian_image: str, changes: dict[str, Any]
) -> None:
    """CVE-2026-23953: a newline in a value that is later written to a file of lines."""
    status, answer = create(twofold_root, debian_image, **changes)
    assert status in (400, 422), answer
    assert twofold("show", "hostile-lines").returncode != 0


def test_a_newline_in_a_value_stays_in_that_value(
    twofold: Runner, twofold_root: str, debian_image: str
) -> None:
    value = "MIGHTY=certificate\nINJECTED=yes"
    status, answer = create(twofold_root, debian_image, env=[value], auto_remove=False)
    try:
        assert status == 201, answer
        done = twofold("start", "-a", "hostile-lines")
        if done.returncode == 2:
            twofold("start", "hostile-lines", check=True)
            twofold("wait", "hostile-lines")
            done = twofold("logs", "hostile-lines")
        variables = done.stdout.split(b"\0")
        assert value.encode() in variables
        assert not [each for each in variables if each.startswith(b"INJECTED")]
    finally:
        twofold("rm", "-f", "hostile-lines")
