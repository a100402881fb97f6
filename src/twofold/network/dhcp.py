"""Addresses for machines with an operating system of their own, which ask for them: dnsmasq.

One per root, on the root's own bridge, and only while such a machine runs. It knows each by its
card and answers nobody else; it serves no names. Everything it is told stands in one file in the
run directory, and a change is a new file and a new process: 10 ms in which a question goes
unanswered and is asked again. It outlives the daemon; the next one knows it by that file.

Blocks. Not safe for several threads: the network manager's lock orders the calls.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network

from twofold.errors import Unavailable, Unsupported

_START_TIMEOUT_S = 10.0
_END_TIMEOUT_S = 5.0
_PLACES = ("/usr/sbin/dnsmasq", "/usr/bin/dnsmasq", "/usr/local/sbin/dnsmasq")
_PROGRAMS = tuple([path.encode()] for path in _PLACES)
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
    bridge: str,
    subnet: IPv4Network,
    gateway: str,
    resolvers: Iterable[str],
    mtu: int,
    folder: str,
    user: str,
) -> str:
    """dnsmasq's file. Pure. Nothing in it comes from a guest; host names are ours."""
    servers = ",".join(resolvers)
    lines = [
        "port=0",  # no names: guests ask the resolvers that the host asks
        f"interface={bridge}",
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
        f"user={user}",
        f"pid-file={folder}/pid",
        f"dhcp-leasefile={folder}/leases",
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
        """Whom it becomes once it has its socket."""
        for name in ("dnsmasq", "nobody"):
            with contextlib.suppress(KeyError):
                return pwd.getpwnam(name).pw_name
        return "nobody"

    @property
    def folder(self) -> str:
        return self._folder

    def serve(self, text: str) -> None:
        """Have it run with this configuration. Raises Unsupported, Unavailable."""
        if self._running() and self._text() == text:
            return
        program = next((path for path in _PLACES if os.access(path, os.X_OK)), "")
        if not program:
            raise Unsupported(
                "dnsmasq is not installed: a machine with an operating system of its own would "
                "get no address",
                hint="apt-get install dnsmasq-base, or: --network none",
            )
        self.stop()
        os.makedirs(self._folder, mode=0o711, exist_ok=True)
        with open(self._file, "w", encoding="ascii") as file:
            file.write(text)
        try:
            # It answers once its socket is bound, and goes on in the background.
            done = subprocess.run(
                ["setpriv", "--no-new-privs", program, f"--conf-file={self._file}"],
                capture_output=True,
                text=True,
                timeout=_START_TIMEOUT_S,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"dnsmasq does not start: {error}") from error
        if done.returncode:
            said = " ".join(done.stderr.split())[:300]
            raise Unavailable(
                f"dnsmasq does not start: {said or f'exit status {done.returncode}'}",
                hint="does another DHCP server listen on every interface? ss -lunp sport = :67",
            )

    def stop(self) -> None:
        """End it, if it is there, and everything it left."""
        pid = self._running()
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not self._is_ours(pid):
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            deadline = time.monotonic() + _END_TIMEOUT_S
            while self._is_ours(pid) and time.monotonic() < deadline:
                time.sleep(0.005)  # it is no child of ours: nothing tells of its end
        shutil.rmtree(self._folder, ignore_errors=True)

    def _running(self) -> int:
        """Its pid, or 0. Should its file be gone (somebody cleaned /run), it is looked for: a
        second server beside it would know other machines than the first."""
        with contextlib.suppress(OSError, ValueError):
            # The file is its user's, who may write what they like.
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
