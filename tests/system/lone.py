"""A Twofold of its own for tests that kill its processes, which must disturb no other test."""

import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twofold.client.sdk import Twofold
from twofold.model.paths import Paths


class Lone:
    """A Twofold of its own with its daemon as our child."""

    def __init__(self, root: Path, clone: Path) -> None:
        self.root, self.clone = root, clone
        self.paths = Paths(str(root))
        self.log = root.parent / "daemon.log"
        self.daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> "Twofold":
        read, write = os.pipe()
        with self.log.open("ab") as log:
            self.daemon = subprocess.Popen(
                [
                    *(self.clone / ".venv/bin/python", "-m", "twofold.daemon"),
                    *("--root", self.root, "--ready-fd", str(write)),
                ],
                pass_fds=(write,),
                stdout=log,
                stderr=log,
            )
        os.close(write)
        said = os.read(read, 65536)
        os.close(read)
        if said != b"ready\n":
            self.daemon.wait()
            raise AssertionError(said.decode() + self.log.read_text())
        return Twofold(str(self.root), launch=False)

    def kill(self, number: int = signal.SIGKILL) -> int:
        assert self.daemon is not None
        self.daemon.send_signal(number)
        return self.daemon.wait(timeout=20)

    def hello(self) -> dict[str, Any]:
        """What the keeper says of itself, asked directly; of the next one, if it is just dying."""
        while True:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.settimeout(20)
                sock.connect(self.paths.keeper_socket)
                try:
                    sock.send(json.dumps({"seq": 1, "op": "hello"}).encode())
                    if answer := sock.recv(1 << 20):
                        return dict(json.loads(answer))
                except (ConnectionResetError, BrokenPipeError):
                    pass

    def kill_keeper(self, *also: str) -> None:
        """SIGKILL to the keeper, and just before to whom is named: ``holder``, ``daemon``.

        In this order because a holder needs less than a millisecond to start another keeper.
        """
        said = self.hello()
        victims = [int(said[one]) for one in also if one == "holder"]
        if "daemon" in also:
            assert self.daemon is not None
            victims.append(self.daemon.pid)
        kill_all(*victims, int(said["pid"]))
        if "daemon" in also and self.daemon is not None:
            self.daemon.wait(timeout=20)


def kill_all(*pids: int) -> None:
    """SIGKILL to all of them with nothing in between; returns when they are dead."""
    pidfds = [os.pidfd_open(pid) for pid in pids]
    for pidfd in pidfds:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    for pidfd in pidfds:
        assert select.select([pidfd], [], [], 10)[0]
        os.close(pidfd)


def wait_for(is_true: Callable[[], bool], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
