"""A small world for network tests: a host, a neighbour on its wire, and instances.

The test's own thread (and what it starts) moves into a fresh network namespace that plays the
host; leaving it brings the thread back and the kernel removes everything. The real host's links
and rules are never touched.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from twofold.runtime.plan import Network

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
HOST = "192.0.2.2"
NEIGHBOUR = "192.0.2.1"
WIRE_MTU = 1400

_SERVER = """
import socket, sys
kind, port, text = sys.argv[1], int(sys.argv[2]), sys.argv[3]
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("0.0.0.0", port))
if kind == "tcp":
    s.listen(16)
print("ready", flush=True)
while True:
    if kind == "tcp":
        c, peer = s.accept()
        c.sendall(f"{text} {peer[0]}".encode())
        c.close()
    else:
        data, peer = s.recvfrom(2000)
        s.sendto(f"{text} {peer[0]}".encode(), peer)
"""
_CLIENT = """
import socket, sys
kind, address, port, wait = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
s.settimeout(wait)
try:
    s.connect((address, port))
    if kind == "udp":
        s.send(b"?")
    print(s.recv(2000).decode(), end="")
except OSError as error:
    print(type(error).__name__, end="")
"""


def run(*command: str, pid: int | None = None) -> str:
    """Run in the namespace of ``pid`` (the lab's host by default); fails loudly."""
    prefix = ["nsenter", "--net", "--target", str(pid)] if pid else []
    done = subprocess.run([*prefix, *command], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@dataclass(kw_only=True)
class Lab:
    neighbour: int
    processes: list["subprocess.Popen[str]"] = field(default_factory=list)

    def namespace(self) -> int:
        """A process in a network namespace of its own: a created sandbox's PID 1."""
        return self._start(["unshare", "--net", "sh", "-c", "echo ready; exec sleep 600"])

    def configure(self, pid: int, network: Network) -> None:
        """What the payload's side does: address, route, up."""
        run("ip", "link", "set", "lo", "up", pid=pid)
        run("ip", "addr", "add", f"{network.address}/{network.prefix}", "dev", "eth0", pid=pid)
        run("ip", "link", "set", "eth0", "up", pid=pid)
        run("ip", "route", "add", "default", "via", network.gateway, pid=pid)

    def serve(self, port: int, text: str, *, kind: str = "tcp", pid: int | None = None) -> int:
        """A server that answers with ``TEXT PEER``."""
        prefix = ["nsenter", "--net", "--target", str(pid)] if pid else []
        return self._start([*prefix, sys.executable, "-c", _SERVER, kind, str(port), text])

    def ask(
        self,
        address: str,
        port: int,
        *,
        kind: str = "tcp",
        pid: int | None = None,
        wait_s: float = 5,
    ) -> str:
        """``TEXT PEER`` or the name of the exception."""
        return run(sys.executable, "-c", _CLIENT, kind, address, str(port), str(wait_s), pid=pid)

    def blocked(
        self, address: str, port: int, *, kind: str = "tcp", pid: int | None = None
    ) -> bool:
        return self.ask(address, port, kind=kind, pid=pid, wait_s=0.5) == "TimeoutError"

    def stop(self, pid: int) -> None:
        process = next(item for item in self.processes if item.pid == pid)
        process.kill()
        process.wait()
        self.processes.remove(process)

    def _start(self, command: list[str]) -> int:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process.pid


@contextmanager
def lab() -> Iterator[Lab]:
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    _check(_LIBC.unshare(_CLONE_NEWNET))
    made = Lab(neighbour=0)
    try:
        made.neighbour = made.namespace()
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "wire")
        run("ip", "link", "set", "wire", "netns", str(made.neighbour), "name", "eth0")
        run("ip", "link", "set", "eth0", "mtu", str(WIRE_MTU), "up")
        run("ip", "addr", "add", f"{HOST}/24", "dev", "eth0")
        run("ip", "route", "add", "default", "via", NEIGHBOUR)
        run("ip", "link", "set", "lo", "up", pid=made.neighbour)
        run("ip", "link", "set", "eth0", "mtu", str(WIRE_MTU), "up", pid=made.neighbour)
        run("ip", "addr", "add", f"{NEIGHBOUR}/24", "dev", "eth0", pid=made.neighbour)
        yield made
    finally:
        for process in made.processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
        _check(_LIBC.setns(before, _CLONE_NEWNET))
        os.close(before)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
