"""Raw QEMU forked from a frozen machine: the same command line, no sandbox, no monitor, no daemon.

What is forked is read from /proc of a machine that Twofold made: QEMU's command line, the memory
that it maps, the state that it was woken with. So a ratio to this is what Twofold adds.
"""

import array
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import TWOFOLD
from vm_cold_boot import qemu_below, without_descriptors

from twofold.guest import protocol
from twofold.model.paths import Paths

_CAPABILITIES = [
    {"capability": "x-ignore-shared", "state": True},
    {"capability": "events", "state": True},
]
_TIMEOUT_S = 60.0
_PROCESS: dict[str, Any] = {
    "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
    "cwd": "/",
    "user": "",
    "tty": False,
    "capabilities": [],
    "no_new_privs": True,
    "rlimits": {},
    "seccomp": "",
}


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """``disk`` is copied for every fork. ``guest`` is what Twofold told its own."""

    argv: list[str]
    guest: dict[str, Any]
    memory_fd: int
    state_fd: int
    root: Path
    disk: Path


def shown(name: str) -> dict[str, Any]:
    told = subprocess.run([TWOFOLD, "show", "--json", name], capture_output=True, check=True)
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def frozen_of(name: str, directory: Path) -> Frozen:
    """What the running machine ``name`` was forked from: a template, or another machine, whose disk
    is then the fork's own as of now."""
    facts = shown(name)
    monitor = int(facts["pid"])
    pid = qemu_below(monitor)
    plan = json.loads(Path(Paths().instance_run(facts["id"]), "plan.json").read_text())
    argv = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    for path in Path(f"/proc/{pid}/root/boot").iterdir():
        if path.is_file():
            (directory / path.name).write_bytes(path.read_bytes())
    links = {link: os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    root = next(link for link, target in links.items() if target.endswith(".erofs"))
    disk = next(link for link, target in links.items() if target.endswith(".img"))
    key = facts["isolation_facts"]["template"]
    if key:
        disk = Path(Paths().templates, key, "data.img")
    kept = {directory / "root": root, directory / "data": disk}
    for target, link in kept.items():
        subprocess.run(["cp", "--sparse=always", "-L", link, target], check=True)
    words = [re.sub(r"/proc/self/fd/\d+$", "/proc/self/fd/{ram}", word) for word in argv]
    return Frozen(
        # Its own control, that of the monitor, is what wakes it.
        argv=[*without_descriptors(words, directory), "-mon", "chardev=inner,mode=control"],
        guest={name: word for name, word in plan["vm"]["guest"].items() if name != "process"},
        memory_fd=_memory_of(pid),
        state_fd=_state_of(monitor),
        root=directory / "root",
        disk=directory / "data",
    )


def _memory_of(pid: int) -> int:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if "/memfd:twofold-" in line:
            return os.open(f"/proc/{pid}/map_files/{line.split()[0]}", os.O_RDONLY)
    sys.exit("bench: the machine was booted, not forked")


def _state_of(monitor: int) -> int:
    for link in Path(f"/proc/{monitor}/fd").iterdir():
        if "/state" in os.readlink(link):
            return os.open(link, os.O_RDONLY)
    sys.exit("bench: the monitor does not hold the state it was woken with")


class RawFork:
    """One QEMU. ``start`` has it on its way; ``run`` waits for a command in the guest."""

    def __init__(self, frozen: Frozen, disk: Path) -> None:
        self._frozen, self._number = frozen, protocol.PAYLOAD_SESSION
        subprocess.run(["cp", "--sparse=always", frozen.disk, disk], check=True)
        self._agent, agent = socket.socketpair()
        self._serial, serial = socket.socketpair()
        self._inner, inner = socket.socketpair()
        for ours in (self._agent, self._inner):
            ours.settimeout(_TIMEOUT_S)
        memory = os.open(f"/proc/self/fd/{frozen.memory_fd}", os.O_RDWR)
        fds = {
            "root": os.open(frozen.root, os.O_RDONLY),
            "data": os.open(disk, os.O_RDWR),
            "ram": memory,
            "agent": agent.fileno(),
            "serial": serial.fileno(),
            "inner": inner.fileno(),
        }
        argv = [re.sub(r"\{(\w+)\}", lambda found: str(fds[found[1]]), one) for one in frozen.argv]
        for fd in fds.values():
            os.set_inheritable(fd, True)
        self._parser = protocol.Parser()
        self.pid = os.posix_spawn(argv[0], argv, {"PATH": "/usr/bin:/bin"})
        for end in (agent, serial, inner):
            end.close()
        for name in ("root", "data", "ram"):
            os.close(fds[name])

    def wake(self) -> None:
        """Read the devices' state and go on."""
        os.lseek(self._frozen.state_fd, 0, os.SEEK_SET)
        self._say("qmp_capabilities")
        self._say("migrate-set-capabilities", capabilities=_CAPABILITIES)
        self._say("getfd", self._frozen.state_fd, fdname="state")
        self._say("migrate-incoming", uri="fd:state")
        buffer = b""
        while b'"completed"' not in buffer:
            data = self._inner.recv(65536)
            buffer += data
            if not data or b'"error"' in buffer:
                sys.exit(f"bench: raw QEMU did not wake up: {buffer.decode()[-500:]}")
        self._say("cont")

    def _say(self, command: str, fd: int = -1, **arguments: Any) -> None:
        line = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
        self._inner.sendmsg([line], rights)

    def begin(self, *argv: str, wait: bool) -> None:
        """Give it what CONFIG gives, and its payload; ``wait`` for the payload's end."""
        self._agent.sendall(protocol.encode_json(protocol.CONFIG, 0, self._identity()))
        self.run(*argv, kind="payload", until=protocol.EXIT if wait else protocol.OPENED)

    def adopt(self) -> None:
        """A copy of a machine that ran: make it somebody else. Then ``run``."""
        self._parser = protocol.Parser(synchronise=True)
        self._number += 1000  # what its agent knows are the parent's sessions
        words = self._identity() | {"birth": "copy", "machine_id": os.urandom(16).hex()}
        self._agent.sendall(
            protocol.encode(protocol.HELLO, 0) + protocol.encode_json(protocol.RENEW, 0, words)
        )

    def _identity(self) -> dict[str, Any]:
        """The guest is asked for all that Twofold asks its own for."""
        moment = {"time": time.time(), "entropy": os.urandom(32).hex()}
        return self._frozen.guest | {"hostname": "bench", **moment}

    def run(self, *argv: str, kind: str = "exec", until: int = protocol.EXIT) -> None:
        number, self._number = self._number, self._number + 1
        stream = protocol.stream_of(number, protocol.STDIN)
        process = {**_PROCESS, "argv": list(argv)}
        request = {"kind": kind, "process": process, "rows": None, "cols": None}
        self._agent.sendall(
            protocol.encode_json(protocol.OPEN, stream, request)
            + protocol.encode(protocol.EOF, stream)
        )
        while data := self._agent.recv(65536):
            for got, of, body in self._parser.feed(data):
                if got == protocol.ERROR:
                    sys.exit(f"bench: the raw guest failed: {bytes(body)!r}")
                if got == until and divmod(of, 4)[0] == number:
                    return
        sys.exit("bench: the raw guest ended")

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.wait4(self.pid, 0)
        for end in (self._agent, self._serial, self._inner):
            end.close()
