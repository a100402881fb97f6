"""Addresses for machines with an operating system of their own, which ask for them: dnsmasq.

One per root, at a port of the root's own bridge, and only while such a machine runs. It knows each
by its card and answers nobody else; it serves no names. It reads what guests send, so it has a
sandbox of its own (``dhcp_jail.py``). Everything it is told stands in one file in the run
directory, and a change is a new file and a new process: a moment in which a question goes
unanswered and is asked again. It outlives the daemon; the next one knows it by that file.

Blocks. Not safe for several threads: the network manager's lock orders the calls.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import IO

from twofold.errors import Unavailable, Unsupported
from twofold.hypervisor.interpreter import resolve_libraries

INTERFACE = "eth0"  # in the server's own network namespace
_PACKAGES = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_START_TIMEOUT_S = 10.0
_END_TIMEOUT_S = 5.0
_PLACES = ("/usr/sbin/dnsmasq", "/usr/bin/dnsmasq", "/usr/local/sbin/dnsmasq")
_PROGRAMS = tuple([path.encode()] for path in _PLACES)
_LISTENS = b":0043 "  # port 67 in /proc/net/udp
_PID_LIMIT_BYTES = 32
_COMMAND_LIMIT_BYTES = 4096


@dataclass(frozen=True, kw_only=True, order=True)
class Lease:
    """What the machine with this card is told to be."""

    mac: str
    address: str
    hostname: str


def configuration(
    leases: Iterable[Lease],
    *,
    subnet: IPv4Network,
    gateway: str,
    resolvers: Iterable[str],
    mtu: int,
) -> str:
    """dnsmasq's file. Pure. Nothing in it comes from a guest; host names are ours."""
    servers = ",".join(resolvers)
    lines = [
        "port=0",  # no names: guests ask the resolvers that the host asks
        f"interface={INTERFACE}",
        "except-interface=lo",
        "bind-interfaces",
        f"dhcp-range={subnet.network_address},static,{subnet.netmask},12h",
        "dhcp-ignore=tag:!known",
        "dhcp-authoritative",
        "dhcp-broadcast",  # an answer must not need a neighbour entry, and so no privilege
        "no-ping",
        "quiet-dhcp",
        "no-resolv",
        "no-hosts",
        "user=nobody",
        "pid-file",  # none: there is nowhere to write
        "leasefile-ro",  # nor need it remember: every machine has one address for good
        "log-facility=/dev/null",  # every line of it would be a guest's to write
        f"dhcp-option=option:router,{gateway}",
        *([f"dhcp-option=option:dns-server,{servers}"] if servers else []),
        *([f"dhcp-option=option:mtu,{mtu}"] if mtu != 1500 else []),
        "dhcp-ignore-names",  # what a guest calls itself is of no use to us
        *(line for one in sorted(leases) for line in _host(one)),
    ]
    return "\n".join(lines) + "\n"


def _host(lease: Lease) -> tuple[str, str]:
    """The name stands in an option of its own: ``dhcp-host`` takes its words by their look, and a
    name like ``ignore``, ``45m`` or ``1.2.3.4`` would be one of its settings. 12 is the host name,
    which dnsmasq does not take by its own name there."""
    tag = f"card{lease.mac.replace(':', '')}"
    return (
        f"dhcp-host={lease.mac},{lease.address},set:{tag},infinite",
        f"dhcp-option=tag:{tag},12,{lease.hostname}",
    )


class DhcpServer:
    """``folder`` is its own place in the run directory."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._file = f"{folder}/dnsmasq.conf"

    @staticmethod
    def user() -> str:
        """Whom it is on the host."""
        for name in ("dnsmasq", "nobody"):
            with contextlib.suppress(KeyError):
                return pwd.getpwnam(name).pw_name
        return "nobody"

    @property
    def folder(self) -> str:
        return self._folder

    def serve(self, text: str, connect: Callable[[int], None]) -> None:
        """Have it run with this configuration. ``connect`` is given the pid in whose network
        namespace the server will look for ``INTERFACE``. Raises Unsupported, Unavailable."""
        if self.running() and self._text() == text:
            return
        program = next((path for path in _PLACES if os.access(path, os.X_OK)), "")
        if not program:
            raise Unsupported(
                "dnsmasq is not installed: a machine with an operating system of its own would "
                "get no address",
                hint="apt-get install dnsmasq-base, or: --network none",
            )
        self.stop()
        os.makedirs(f"{self._folder}/root", mode=0o711, exist_ok=True)
        self._write(self._file, text)
        with tempfile.TemporaryFile() as said:
            try:
                pid = self._begin(program, said, connect)
            except (OSError, ValueError) as error:
                raise _does_not_start(said, str(error)) from error
            if not _listens(pid):
                self.stop()
                raise _does_not_start(said, "it does not listen")
        self._write(f"{self._folder}/pid", f"{pid}\n")

    def _begin(self, program: str, said: IO[bytes], connect: Callable[[int], None]) -> int:
        """Its pid, as the host numbers it. Raises OSError, ValueError."""
        libraries, loader = resolve_libraries(program)
        files = dict.fromkeys([program, *libraries, loader])
        user = pwd.getpwnam(self.user())
        words = (f"{self._folder}/root", self._file, str(user.pw_uid), str(user.pw_gid))
        starter = subprocess.Popen(
            [sys.executable, "-m", "twofold.network.dhcp_jail", *words, *files],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env={**os.environ, "PYTHONPATH": _PACKAGES, "PYTHONSAFEPATH": "1"},
        )
        assert starter.stdin is not None
        assert starter.stdout is not None
        with starter:
            pid = int(starter.stdout.readline())
            connect(pid)
            starter.stdin.write(b"\n")  # it ends by itself when this never comes
        return pid

    @staticmethod
    def _write(path: str, text: str) -> None:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)

    def stop(self) -> None:
        """End it, if it is there, and everything it left."""
        pid = self.running()
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not self._is_ours(pid):
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            deadline = time.monotonic() + _END_TIMEOUT_S
            while self._is_ours(pid) and time.monotonic() < deadline:
                time.sleep(0.005)  # it is no child of ours: nothing tells of its end
        shutil.rmtree(self._folder, ignore_errors=True)

    def running(self) -> int:
        """Its pid, or 0. Should its file be gone (somebody cleaned /run), it is looked for: a
        second server beside it would know other machines than the first."""
        with contextlib.suppress(OSError, ValueError):
            with open(f"{self._folder}/pid", "rb") as file:
                pid = int(file.read(_PID_LIMIT_BYTES))
            if self._is_ours(pid):
                return pid
        found = (int(name) for name in os.listdir("/proc") if name.isdecimal())
        return next((pid for pid in found if self._is_ours(pid)), 0)

    def _is_ours(self, pid: int) -> bool:
        """A pid that now belongs to something else does not count."""
        if pid <= 0:
            return False
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read(_COMMAND_LIMIT_BYTES).split(b"\0")
        except OSError:
            return False
        return words[:1] in _PROGRAMS and words[1:2] == [f"--conf-file={self._file}".encode()]

    def _text(self) -> str:
        try:
            with open(self._file, encoding="ascii") as file:
                return file.read()
        except (OSError, ValueError):
            return ""


def _listens(pid: int) -> bool:
    """Whether it has its socket in time: what is asked from then on waits in there."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/net/udp", "rb") as file:
                if _LISTENS in file.read():
                    return True
        except OSError:
            return False  # it has ended
        time.sleep(0.002)  # no event tells of another's socket
    return False


def _does_not_start(said: IO[bytes], otherwise: str) -> Unavailable:
    said.seek(0)
    words = " ".join(said.read(4096).decode("utf-8", "replace").split())[:300]
    return Unavailable(f"dnsmasq does not start: {words or otherwise}", hint="twofold doctor")
